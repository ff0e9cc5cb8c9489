r"""Directions of the features along which no tangents were taken: they push a simulated run's adapters as noise.

Many classes have more directions than are taken (``Tangents.span``, ``Tangents.basis``). The loss's gradients along the
others are known, what they do to the adapters is not. Without them, an optimiser that divides a gradient by its size,
as Adam does, gives what is left of it the length of all of it, and a simulated run learns too fast (``docs/log.md``).
So every gradient of an adapter gets normal noise with

.. math:: \mathbb E\,\lVert n\rVert^2 = \lVert g\rVert^2\,
    \left(\frac{\sum_x \lVert S_x\,\partial L/\partial h_x\rVert^2}
    {\sum_x \lVert Q_x\,\partial L/\partial h_x\rVert^2} - 1\right)

with Q the directions taken, S all of them, h the features of the batch's examples x: an estimate, as if gradients
along all directions had adapters' gradients of the same size.
"""

from collections.abc import Iterable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.linear.draws import Draws


class LeftOut:
    """Adds the noise to the gradients of some parameters, in every backward pass of features that are watched.

    Args:
        parameters: Those of the adapters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.ratio = 0.0
        self.draws: Draws | None = None  # of the backward pass to come
        for number, parameter in enumerate(parameters):
            parameter.register_hook(partial(self._noisy, number))

    def watch(
        self, features: Float[Tensor, "b d"], taken: Float[Tensor, "k q d"], span: Float[Tensor, "m s d"]
    ) -> None:
        """Measure the ratio where the gradient of these features is known, before those of the adapters are."""

        def measure(gradient: Float[Tensor, "b d"]) -> None:
            known, whole = (
                float(torch.einsum("bd,bqd->bq", gradient, rows.to(gradient).expand(len(gradient), -1, -1)).norm()) ** 2
                for rows in (taken, span)
            )
            self.ratio = max(whole / known - 1, 0.0) if known else 0.0

        if features.requires_grad:
            self.draws = Draws()
            features.register_hook(measure)

    def _noisy(self, number: int, gradient: Tensor) -> Tensor:
        if self.draws is None:
            return gradient
        size = (self.ratio / gradient.numel()) ** 0.5 * torch.linalg.vector_norm(gradient)
        noise = torch.randn(gradient.shape, dtype=gradient.dtype, generator=self.draws.generator(number))
        return noise.mul_(size).add_(gradient)
