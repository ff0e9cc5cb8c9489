"""Matches the order of the classes with the model's trained head.

The head is the last part of a classifier; it has one output for every class. A head that was trained for the labels of
the data already has an order of classes.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedConfig

from foretune.task.data import RawData
from foretune.task.labels import normalised


def head_labels(config: PreTrainedConfig) -> tuple[str, ...] | None:
    """The labels of a model's outputs, in the order of the outputs.

    Args:
        config: The model's config.

    Returns:
        The labels; None if the config has only numbers or the names ``LABEL_0``, ``LABEL_1``, ...
    """
    names = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    if set(names) != set(range(len(names))):
        return None
    labels = tuple(names[number] for number in range(len(names)))
    return None if all(re.fullmatch(r"(LABEL_)?\d+", label) for label in labels) else labels


def in_order_of_head(raw: RawData, head: Sequence[str] | None) -> RawData:
    """Number the classes as the head does, if the head has the labels of the data.

    Differences that are hard to see, such as capital letters, are ignored. Labels that are numbers from 0 keep their
    order, because they are the numbers of the head's outputs.

    Args:
        raw: The data.
        head: The labels of the head, see ``head_labels``.

    Returns:
        The data with the head's order of classes; unchanged if the labels differ.
    """
    if raw.labels is None or head is None or not _same_labels(raw.labels, head):
        return raw
    position = {normalised(label): number for number, label in enumerate(head)}
    new = [position[normalised(label)] for label in raw.labels]
    names = sorted(raw.labels, key=lambda label: position[normalised(label)])
    return replace(
        raw,
        labels=tuple(names),
        train_labels=[new[old] for old in raw.train_labels],
        eval_labels=[new[old] for old in raw.eval_labels],
    )


def head_warning(labels: Sequence[str], head: Sequence[str] | None, model: str) -> str | None:
    """The warning about a trained head whose labels may differ from those of the data.

    Args:
        labels: The labels of the data, in the order of the classes.
        head: The labels of the head, see ``head_labels``.
        model: Name of the model in messages.

    Returns:
        The warning; None if the labels are the same or the data's labels are numbers from 0.
    """
    if _same_labels(labels, head or ()) or _are_numbers(labels):
        return None
    order = ", ".join(f"{number} = {label}" for number, label in enumerate(labels))
    head_text = f"labels are {', '.join(head)}" if head else "labels have no names"
    return (
        f"{model} has a trained head whose {head_text}: training starts from it, with the data's labels "
        f"in the order {order}. Give the base model to start from a new head, or write the right order into "
        "id2label of config.json"
    )


def _same_labels(labels: Sequence[str], head: Sequence[str]) -> bool:
    label_set, head_set = ({normalised(label) for label in names} for names in (labels, head))
    return label_set == head_set and len(label_set) == len(labels) == len(head)


def _are_numbers(labels: Sequence[str]) -> bool:
    return list(labels) == [str(number) for number in range(len(labels))]
