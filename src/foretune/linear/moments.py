"""A tangent model at several moments of its run, evaluated together."""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.linear.tangent_model import TangentModel, mean_loss
from foretune.tangents import evaluating


class Moments:
    """Copies of a tangent model's parameters; the outputs of all are taken in one pass over the examples' rows.

    One pass for nine moments costs about as much as two evaluations (``docs/log.md``): reading the rows is what takes
    the time.

    Args:
        model: Its tangents must stay the same from one ``take`` to ``recall``.
        examples: Those that will be asked for, in the order in which their rows are best read.
        batch: How many at a time.
    """

    def __init__(self, model: TangentModel, examples: Int[Tensor, " n"], batch: int) -> None:
        self.model, self.batches = model, examples.split(batch)
        self.kept: list[dict[str, Tensor]] = []

    def take(self) -> None:
        """Keep the parameters as they are now."""
        self.kept.append({name: value.detach().clone() for name, value in self.model.named_parameters()})

    def recall(self) -> Iterator[nn.Module]:
        """A stand-in for the model at each moment that was kept; then these are forgotten."""
        if not self.kept:
            return iter(())
        shape = self.model.tangents.outputs.shape
        tables = [torch.full(shape, torch.nan, dtype=self.model.dtype) for _ in self.kept]
        with evaluating(self.model), torch.no_grad():
            for some, found in zip(self.batches, self.model.outputs_at(self.kept, self.batches), strict=True):
                for table, outputs in zip(tables, found, strict=True):
                    table[some] = outputs
        self.kept.clear()
        return iter([_Recalled(table, self.model.tangents.loss) for table in tables])


class _Recalled(nn.Module):
    """Outputs of numbered examples, looked up."""

    def __init__(self, outputs: Float[Tensor, "n c"], loss: str) -> None:
        super().__init__()
        self.outputs, self.loss = outputs, loss

    def forward(self, index: Int[Tensor, " b"], labels: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        logits = self.outputs[index]
        loss = None if labels is None else mean_loss(self.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
