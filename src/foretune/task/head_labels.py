"""The order of classes: that of the model's trained head, if it has one for these labels."""

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedConfig

from foretune.task.data import RawData
from foretune.task.labels import folded


def head_labels(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """The labels of a model's outputs in their order; None where its config has only numbers or ``LABEL_0``, ..."""
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if set(names) != set(range(len(names))):
        return None
    labels = tuple(names[number] for number in range(len(names)))
    return None if all(re.fullmatch(r"(LABEL_)?\d+", label) for label in labels) else labels


def in_order_of_head(raw: RawData, head: Sequence[str] | None) -> RawData:
    """The same data with classes numbered as the head numbers them, where its labels are those of the data.

    Differences that are hard to see, such as capital letters, do not count. Labels that are numbers from 0 keep their
    order, as they are the head's numbers.
    """
    if raw.labels is None or head is None or not _same(raw.labels, head):
        return raw
    place = {folded(label): number for number, label in enumerate(head)}
    new = [place[folded(label)] for label in raw.labels]
    names = sorted(raw.labels, key=lambda label: place[folded(label)])
    return replace(
        raw,
        labels=tuple(names),
        train_labels=[new[old] for old in raw.train_labels],
        eval_labels=[new[old] for old in raw.eval_labels],
    )


def head_warning(labels: Sequence[str], head: Sequence[str] | None, model: str) -> str | None:
    """What to say where a trained head is used for labels that are not known to be its own.

    Args:
        labels: Of the data, in the order of the classes.
        head: Of the model's config, see ``head_labels``.
        model: What messages call the model.
    """
    if _same(labels, head or ()) or _numbers(labels):
        return None
    order = ", ".join(f"{number} = {label}" for number, label in enumerate(labels))
    its = f"labels are {', '.join(head)}" if head else "labels have no names"
    return (
        f"{model} has a trained head whose {its}: training starts from it with the data's labels in the order {order}. "
        f"Give the base model to start from a new head, or write the order that is meant into id2label of config.json"
    )


def _same(labels: Sequence[str], head: Sequence[str]) -> bool:
    ours, its = ({folded(label) for label in each} for each in (labels, head))
    return ours == its and len(ours) == len(labels) == len(head)


def _numbers(labels: Sequence[str]) -> bool:
    return list(labels) == [str(number) for number in range(len(labels))]
