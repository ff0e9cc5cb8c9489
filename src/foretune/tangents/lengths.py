"""Examples of like length together: passes that waste little on padding and need memory for few tokens."""

from collections.abc import Sequence

from datasets import Dataset

TOKENS = 1024  # in a pass, padding counted: enough to keep a processor busy, little enough for long texts


def lengths(split: Dataset) -> list[int]:
    """Tokens of each example that are not padding; 1 for inputs without tokens."""
    if "attention_mask" in split.column_names:
        return [sum(mask) for mask in split["attention_mask"]]
    if "input_ids" in split.column_names:
        return [len(ids) for ids in split["input_ids"]]
    return [1] * len(split)


def alike(lengths: Sequence[int], most: int) -> list[list[int]]:
    """Batches of at most ``most`` examples and ``TOKENS`` padded tokens, shorter examples first.

    An example that is longer than ``TOKENS`` is a batch of its own.
    """
    batches: list[list[int]] = [[]]
    for i in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches[-1] and (len(batches[-1]) == most or (len(batches[-1]) + 1) * lengths[i] > TOKENS):
            batches.append([])
        batches[-1].append(i)
    return batches


def alike_in_splits(train: Sequence[int], evaluation: Sequence[int], most: int) -> list[list[int]]:
    """Batches of the training examples, then of those for evaluation, which are numbered behind them."""
    return alike(train, most) + [[len(train) + i for i in batch] for batch in alike(evaluation, most)]
