"""Outputs of a model for a whole split, computed in batches."""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn

from foretune.tangents.head import outputs_of
from foretune.tangents.hooks import evaluating
from foretune.tangents.lengths import alike, lengths
from foretune.task import Task

BATCH = 32  # most examples in a batch


def batches(
    model: nn.Module, task: Task, rows: Dataset, numbers: Sequence[Sequence[int]] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Yield padded batches on the model's device.

    Args:
        model: The model. It is not run.
        task: The task whose collator pads the batches.
        rows: The examples.
        numbers: The indices of the examples of every batch. By default batches have all examples in order.
    """
    device = next(model.parameters()).device
    starts = range(0, len(rows), BATCH)
    for batch in numbers or [range(first, min(first + BATCH, len(rows))) for first in starts]:
        yield {name: value.to(device) for name, value in task.collator([rows[i] for i in batch]).items()}


def all_outputs(model: nn.Module, task: Task, rows: Dataset) -> Float[Tensor, "n c"]:
    """Compute the model's outputs for all rows in eval mode, in the order of the rows, in float64 on the CPU."""
    numbers = alike(lengths(rows), BATCH)
    with evaluating(model), torch.no_grad():
        outputs = [outputs_of(model, batch).double().cpu() for batch in batches(model, task, rows, numbers)]
    return torch.cat(outputs)[torch.tensor([i for batch in numbers for i in batch]).argsort()]
