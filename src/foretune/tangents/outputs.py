"""Outputs of a model for whole splits, batch by batch."""

from collections.abc import Iterator, Sequence

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn

from foretune.tangents.head import outputs_of
from foretune.tangents.hooks import evaluating
from foretune.tangents.lengths import alike, lengths
from foretune.task import Task

BATCH = 32


def batches(
    model: nn.Module, task: Task, rows: Dataset, numbers: Sequence[Sequence[int]] | None = None
) -> Iterator[dict[str, Tensor]]:
    """Padded batches on the model's device: of the rows with these numbers, by default of all in their order."""
    device = next(model.parameters()).device
    starts = range(0, len(rows), BATCH)
    for some in numbers or [range(first, min(first + BATCH, len(rows))) for first in starts]:
        yield {name: value.to(device) for name, value in task.collator([rows[i] for i in some]).items()}


def all_outputs(model: nn.Module, task: Task, rows: Dataset) -> Float[Tensor, "n c"]:
    """The model's outputs for the rows in eval mode, in float64 on the CPU, where they are compared."""
    numbers = alike(lengths(rows), BATCH)
    with evaluating(model), torch.no_grad():
        found = [outputs_of(model, batch).double().cpu() for batch in batches(model, task, rows, numbers)]
    return torch.cat(found)[torch.tensor([i for some in numbers for i in some]).argsort()]
