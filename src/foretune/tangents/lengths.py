"""Batches of examples of similar length, which need little padding and little memory."""

from collections.abc import Sequence

from datasets import Dataset

TOKENS = 1024  # most tokens of a batch, with padding: enough to keep a processor busy, few enough for memory


def lengths(split: Dataset) -> list[int]:
    """The number of tokens of every example, without padding; 1 for inputs without tokens."""
    if "attention_mask" in split.column_names:
        return [sum(mask) for mask in split["attention_mask"]]
    if "input_ids" in split.column_names:
        return [len(ids) for ids in split["input_ids"]]
    return [1] * len(split)


def alike(lengths: Sequence[int], max_examples: int) -> list[list[int]]:
    """Put examples of similar length into batches, shorter examples first.

    A batch has at most ``max_examples`` examples and ``TOKENS`` tokens, padding included. An example with more tokens
    is a batch of its own.

    Args:
        lengths: The number of tokens of every example.
        max_examples: The most examples in a batch.

    Returns:
        The indices of the examples of every batch.
    """
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and (len(batches[-1]) == max_examples or (len(batches[-1]) + 1) * lengths[i] > TOKENS):
            batches.append([])
        batches[-1].append(i)
    return batches


def alike_in_splits(train: Sequence[int], evaluation: Sequence[int], max_examples: int) -> list[list[int]]:
    """Batch the training examples, then the evaluation examples. Their indices follow the training examples'."""
    later = [[len(train) + i for i in batch] for batch in alike(evaluation, max_examples)]
    return alike(train, max_examples) + later
