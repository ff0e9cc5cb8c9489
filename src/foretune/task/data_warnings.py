"""Warns about data that can be used but probably has a mistake: one sentence per warning, the worst first."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

from foretune.errors import printable
from foretune.task.data import EncodedData, RawData
from foretune.task.labels import DECIMAL_COMMA, HARD_TO_SEE, normalised
from foretune.task.problems import shown

MISSING = {"na", "n/a", "nan", "null", "none", "nil", "-100", "?"}  # labels that usually mean: no label
HUGE = 1000.0  # larger targets are far from the outputs of an untrained head
UNBALANCED = 10  # classes are unbalanced if the largest has more than this many times the examples of the rarest
MUCH_CUT = 0.2  # the share of truncated examples above which there is a warning
FEW = 100  # with fewer evaluation examples, the standard error of an accuracy is up to 5 points or more
MANY_CLASSES = 20  # with more classes than this, labels that hardly repeat are probably not classes


def data_warnings(raw: RawData, data: EncodedData) -> tuple[str, ...]:
    """Find probable mistakes in the data of a run.

    Args:
        raw: Both splits as they were read.
        data: The same splits, tokenised.

    Returns:
        The warnings, the worst first.
    """
    if raw.labels is None:
        warnings = [*_targets(raw), *_texts(raw, data)]
    else:
        warnings = [
            *_similar_labels(raw, raw.labels),
            *_contradictions(raw, raw.labels),
            *_classes(raw, raw.labels),
            *_texts(raw, data),
            *_balance(data),
        ]
    if data.train_stats.repeated:
        warnings.append(f"{data.train_stats.repeated} training texts occur more than once")
    return tuple(printable(sentence) for sentence in warnings)


def few_evaluation_examples(count: int) -> tuple[str, ...]:
    """A warning if there are so few evaluation examples that a metric measured on them is inexact."""
    if count >= FEW:
        return ()
    error = 50 / math.sqrt(count)
    return (
        f"data.eval has only {count} examples, so chance alone moves an accuracy by up to {error:.0f} points (one "
        f"standard error): compare candidates on {2 * FEW} or more",
    )


def _similar_labels(raw: RawData, labels: Sequence[str]) -> Iterator[str]:
    """Warn about labels that look the same."""
    rows = _rows(raw, labels)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in labels:
        groups[normalised(name)].append(name)
    for group in groups.values():
        if len(group) > 1:
            kinds = [kind for kind in HARD_TO_SEE if len({normalised(name, keep=kind) for name in group}) > 1]
            listed = " and ".join(f"{shown(name)} ({rows[name]} rows)" for name in group)
            yield f"the labels {listed} differ only in {' and '.join(kinds)}: make them one"


def _contradictions(raw: RawData, labels: Sequence[str]) -> Iterator[str]:
    """Warn about training texts that occur with several labels."""
    labels_of: dict[tuple[str, ...], set[int]] = defaultdict(set)
    for texts, label in zip(zip(*raw.train_texts, strict=True), raw.train_labels, strict=True):
        labels_of[tuple(text.strip().lower() for text in texts)].add(label)
    contradictions = [(texts, sorted(several)) for texts, several in labels_of.items() if len(several) > 1]
    if contradictions:
        texts, several = contradictions[0]
        example = f"{shown(' / '.join(texts))} ({' and '.join(shown(labels[label]) for label in several[:3])})"
        yield f"{len(contradictions)} training texts have different labels in different rows, such as {example}"


def _classes(raw: RawData, labels: Sequence[str]) -> Iterator[str]:
    """Warn if there is only one class, if there are very many, if only one is tested, or if one means: no label."""
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
        yield f"all {len(raw.eval_labels)} evaluation examples have the label {label}: the other classes are not tested"
    for name in labels:
        if rows[name] and name.strip().lower() in MISSING:
            yield (
                f"{rows[name]} rows have the label {shown(name)}, which is used as a class: "
                "remove these rows if it means that they have no label"
            )


def _targets(raw: RawData) -> Iterator[str]:
    """Warn about regression targets that are constant or huge."""
    if min(raw.eval_labels) == max(raw.eval_labels):
        yield f"all {len(raw.eval_labels)} evaluation targets are {raw.eval_labels[0]:g}: the correlation counts as 0"
    low, high = min(raw.train_labels), max(raw.train_labels)
    if max(abs(low), abs(high)) > HUGE:
        yield f"training targets go from {low:g} to {high:g}, but a new head starts with outputs near 0: scale them"


def _texts(raw: RawData, data: EncodedData) -> Iterator[str]:
    """Warn about texts that are in both splits, blank, or cut."""
    if data.overlap:
        yield f"{data.overlap} evaluation texts are also training texts: the evaluation will look too good"
    for split, columns in (("training", raw.train_texts), ("evaluation", raw.eval_texts)):
        if blank := sum(not all(text.strip() for text in texts) for texts in zip(*columns, strict=True)):
            yield f"{blank} {split} texts are empty or blank"
    for split, stats in (("training", data.train_stats), ("evaluation", data.eval_stats)):
        if stats.truncated > MUCH_CUT:
            yield f"{stats.truncated:.0%} of the {split} examples are cut: is data.max_length too small?"


def _balance(data: EncodedData) -> Iterator[str]:
    """Warn about classes of very different sizes."""
    for split, stats in (("training", data.train_stats), ("evaluation", data.eval_stats)):
        counts = stats.class_counts or {}
        if counts and max(counts.values()) > UNBALANCED * min(counts.values()):
            rarest = min(counts, key=lambda name: counts[name])
            yield f"{split} classes are unbalanced: {rarest} has {counts[rarest]} of {stats.rows} examples"


def _rows(raw: RawData, labels: Sequence[str]) -> Counter[str]:
    """Count the rows of both splits by label."""
    return Counter(labels[label] for label in (*raw.train_labels, *raw.eval_labels))
