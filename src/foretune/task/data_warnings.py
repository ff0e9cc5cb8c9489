"""What is surprising in data that can be used, and likely a mistake: one sentence each, the worst first."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from foretune.errors import printable
from foretune.task.data import EncodedData, RawData
from foretune.task.labels import DECIMAL_COMMA, HARD_TO_SEE, folded
from foretune.task.problems import shown

MISSING = {"na", "n/a", "nan", "null", "none", "nil", "-100", "?"}  # how others write that there is no label
HUGE = 1000.0  # targets above it are far from what an untrained head gives
UNBALANCED = 10  # times as many examples as of the rarest class
MUCH_CUT = 0.2  # share of the examples
MANY_CLASSES = 20  # above it, labels that hardly repeat are said to be no classes


def data_warnings(raw: RawData, data: EncodedData) -> tuple[str, ...]:
    """What to tell about the data of a run before anything is spent on it.

    Args:
        raw: Both splits as they were read.
        data: The same splits, tokenised.
    """
    if raw.labels is None:
        found = [*_targets(raw), *_texts(raw, data)]
    else:
        found = [
            *_alike(raw, raw.labels),
            *_contradictions(raw, raw.labels),
            *_classes(raw, raw.labels),
            *_texts(raw, data),
            *_balance(data),
        ]
    if data.train_stats.repeated:
        found.append(f"{data.train_stats.repeated} training texts occur more than once")
    return tuple(printable(sentence) for sentence in found)


def _alike(raw: RawData, labels: Sequence[str]) -> Iterator[str]:
    """Labels that look the same."""
    rows = _rows(raw, labels)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in labels:
        groups[folded(name)].append(name)
    for group in groups.values():
        if len(group) > 1:
            kinds = [kind for kind in HARD_TO_SEE if len({folded(name, but=kind) for name in group}) > 1]
            listed = " and ".join(f"{shown(name)} ({rows[name]} rows)" for name in group)
            yield f"the labels {listed} differ only in {' and '.join(kinds)}: make them one"


def _contradictions(raw: RawData, labels: Sequence[str]) -> Iterator[str]:
    """Training texts that stand there with several labels."""
    seen: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for texts, label in zip(zip(*raw.train_texts, strict=True), raw.train_labels, strict=True):
        seen[tuple(text.strip().lower() for text in texts)].add(label)
    found = [(texts, sorted(several)) for texts, several in seen.items() if len(several) > 1]
    if found:
        texts, several = found[0]
        example = f"{shown(' / '.join(texts))} ({' and '.join(shown(labels[label]) for label in several[:3])})"
        yield f"{len(found)} training texts have different labels in different rows, such as {example}"


def _classes(raw: RawData, labels: Sequence[str]) -> Iterator[str]:
    rows, used = _rows(raw, labels), set(raw.train_labels)
    count = len(raw.train_labels)
    if len(used) == 1:
        yield f"all {count} training examples have the label {shown(labels[min(used)])}: there is nothing to learn"
    if all(DECIMAL_COMMA.fullmatch(name) for name in labels):
        example = labels[0].strip().replace(",", ".")
        yield (
            f"the labels, such as {shown(labels[0])}, are numbers with a decimal comma, and count as classes: "
            f"if they are ratings, write {example} and set task: regression"
        )
    if len(used) > MANY_CLASSES and 2 * len(used) > count:
        yield f"{count} training examples have {len(used)} different labels: is data.label the column of the labels?"
    if len(set(raw.eval_labels)) == 1:
        label = shown(labels[raw.eval_labels[0]])
        yield f"all {len(raw.eval_labels)} evaluation examples have the label {label}: others are not tested"
    for name in labels:
        if rows[name] and name.strip().lower() in MISSING:
            yield f"{rows[name]} rows have the label {shown(name)}, a class like others: remove them if it means none"


def _targets(raw: RawData) -> Iterator[str]:
    if min(raw.eval_labels) == max(raw.eval_labels):
        yield f"all {len(raw.eval_labels)} evaluation targets are {raw.eval_labels[0]:g}: their correlation counts as 0"
    low, high = min(raw.train_labels), max(raw.train_labels)
    if max(abs(low), abs(high)) > HUGE:
        yield f"training targets go from {low:g} to {high:g}, and a new head gives numbers near 0: scale them"


def _texts(raw: RawData, data: EncodedData) -> Iterator[str]:
    if data.overlap:
        yield f"{data.overlap} evaluation texts are also training texts: the evaluation will flatter the model"
    for split, columns in (("training", raw.train_texts), ("evaluation", raw.eval_texts)):
        if blank := sum(not all(text.strip() for text in texts) for texts in zip(*columns, strict=True)):
            yield f"{blank} {split} texts are empty or blank"
    for split, stats in (("training", data.train_stats), ("evaluation", data.eval_stats)):
        if stats.truncated > MUCH_CUT:
            yield f"{stats.truncated:.0%} of the {split} examples are cut: is data.max_length too small?"


def _balance(data: EncodedData) -> Iterator[str]:
    for split, stats in (("training", data.train_stats), ("evaluation", data.eval_stats)):
        counts = stats.class_counts or {}
        if counts and max(counts.values()) > UNBALANCED * min(counts.values()):
            rarest = min(counts, key=lambda name: counts[name])
            yield f"{split} classes are unbalanced: {rarest} has {counts[rarest]} of {stats.rows} examples"


def _rows(raw: RawData, labels: Sequence[str]) -> Counter[str]:
    """How many rows of both splits have a label."""
    return Counter(labels[label] for label in (*raw.train_labels, *raw.eval_labels))
