"""Tangent models at several moments of their runs, evaluated together."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.linear.along import along_tangents
from foretune.linear.tangent_model import TangentModel, mean_loss
from foretune.linear.weights import change_norms
from foretune.tangents import evaluating

Moment = tuple[TangentModel, Mapping[str, Tensor]]  # a model, and values of its parameters by name

LOT = 16  # moments in one product: wider ones do not stay near the processor


class Moments:
    """Copies of tangent models' parameters; the outputs of all are taken in one pass over the examples' rows.

    One pass for nine moments costs about as much as two evaluations (``docs/log.md``): reading the rows is what takes
    the time.

    Args:
        models: Of the same tangents, which must stay the same from one ``take`` to ``recall``.
        examples: Those that will be asked for, in the order in which their rows are best read.
        batch: How many at a time.
    """

    def __init__(self, models: Sequence[TangentModel], examples: Int[Tensor, " n"], batch: int) -> None:
        self.models, self.batches = models, examples.split(batch)
        self.kept: list[list[Moment]] = []

    def take(self) -> None:
        """Keep the parameters as they are now."""
        self.kept.append(
            [(model, {k: v.detach().clone() for k, v in model.named_parameters()}) for model in self.models]
        )

    def recall(self) -> list[list[nn.Module]]:
        """Stand-ins for the models at each moment that was kept; then these are forgotten."""
        tables = iter(outputs_at([each for moment in self.kept for each in moment], self.batches))
        found: list[list[nn.Module]] = [
            [_Recalled(next(tables), model.tangents.loss) for model, _ in moment] for moment in self.kept
        ]
        self.kept.clear()
        return found


def outputs_at(moments: Sequence[Moment], batches: Sequence[Tensor]) -> list[Float[Tensor, "n c"]]:
    """Outputs of models of the same tangents at several moments; of examples that are in no batch they are NaN."""
    tables = [torch.full(model.tangents.outputs.shape, torch.nan, dtype=model.dtype) for model, _ in moments]
    with ExitStack() as stack, torch.no_grad():
        for model in dict.fromkeys(model for model, _ in moments):
            stack.enter_context(evaluating(model))
        for start in range(0, len(moments), LOT):
            lot = moments[start : start + LOT]
            weights, model = [each.weights(values) for each, values in lot], lot[0][0]
            norms = change_norms(weights)
            for examples in batches:
                changes = along_tangents(model.tangents, examples, weights, model.dtype).unbind(2)
                for number, (each, values) in enumerate(lot):
                    change = each.grown(changes[number], norms[number])
                    tables[start + number][examples] = each.outputs_with(values, examples, change)
    return tables


class _Recalled(nn.Module):
    """Outputs of numbered examples, looked up."""

    def __init__(self, outputs: Float[Tensor, "n c"], loss: str) -> None:
        super().__init__()
        self.outputs, self.loss = outputs, loss

    def forward(self, index: Int[Tensor, " b"], labels: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        logits = self.outputs[index]
        loss = None if labels is None else mean_loss(self.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
