"""Evaluates tangent models at several moments of their runs together."""

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

LOT = 16  # moments in one product; wider products do not fit the processor's cache


class Moments:
    """Keeps copies of tangent models' parameters, and evaluates all copies in one pass over the examples' rows.

    Reading the rows takes most of the time. One pass for nine moments costs about as much as two evaluations
    (``docs/log.md``).

    Args:
        models: Models with the same tangents. These tangents must not change between ``take`` and ``recall``.
        examples: Indices of the examples to evaluate, in the order in which their rows are read.
        batch: How many examples are read at a time.
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
        """Evaluate the kept moments and forget them.

        Returns:
            For every moment, stand-ins for the models that look up the computed outputs.
        """
        tables = iter(outputs_at([member for moment in self.kept for member in moment], self.batches))
        models: list[list[nn.Module]] = [
            [_Recalled(next(tables), model.tangents.loss) for model, _ in moment] for moment in self.kept
        ]
        self.kept.clear()
        return models


def outputs_at(moments: Sequence[Moment], batches: Sequence[Tensor]) -> list[Float[Tensor, "n c"]]:
    """Compute the outputs of models with the same tangents at several moments.

    Args:
        moments: Models with values of their parameters.
        batches: Indices of examples. Outputs of examples in no batch are NaN.
    """
    tables = [torch.full(model.tangents.outputs.shape, torch.nan, dtype=model.dtype) for model, _ in moments]
    with ExitStack() as stack, torch.no_grad():
        for model in dict.fromkeys(model for model, _ in moments):
            stack.enter_context(evaluating(model))
        for start in range(0, len(moments), LOT):
            lot = moments[start : start + LOT]
            weights, model = [member.weights(values) for member, values in lot], lot[0][0]
            norms = change_norms(weights)
            for examples in batches:
                changes = along_tangents(model.tangents, examples, weights, model.dtype).unbind(2)
                for number, (member, values) in enumerate(lot):
                    change = member.grown(changes[number], norms[number])
                    tables[start + number][examples] = member.outputs_with(values, examples, change)
    return tables


class _Recalled(nn.Module):
    """A model that looks up the outputs of examples in a table."""

    def __init__(self, outputs: Float[Tensor, "n c"], loss: str) -> None:
        super().__init__()
        self.outputs, self.loss = outputs, loss

    def forward(self, index: Int[Tensor, " b"], labels: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        logits = self.outputs[index]
        loss = None if labels is None else mean_loss(self.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)
