r"""Noise that stands for feature directions without tangents in a simulated run.

With many classes the loss depends on more directions of the features (``Tangents.span``) than tangents are collected
for (``Tangents.basis``). The loss's gradient along the left-out directions is known, but its effect on the adapters is
not. Adam divides a gradient by its size, so a gradient without these directions would be scaled up to the size of the
whole gradient, and the simulated run would learn too fast (``docs/log.md``). So the gradient g of every adapter
parameter gets normal noise n with

.. math:: \mathbb E\,\lVert n\rVert^2 = \lVert g\rVert^2\,
    \left(\frac{\sum_x \lVert S_x\,\partial L/\partial h_x\rVert^2}
    {\sum_x \lVert Q_x\,\partial L/\partial h_x\rVert^2} - 1\right)

where Q are the directions with tangents, S all directions, and h the features of the batch's examples x. This is an
estimate. It assumes that a gradient along any direction moves the adapters equally far.
"""

from collections.abc import Iterable
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.linear.draws import Draws


class LeftOut:
    """Adds the noise to the gradients of the adapters in every backward pass.

    Args:
        parameters: The parameters of the adapters.
    """

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.ratio = 0.0
        self.draws: Draws | None = None  # random numbers for the next backward pass
        for number, parameter in enumerate(parameters):
            parameter.register_hook(partial(self._noisy, number))

    def watch(
        self, features: Float[Tensor, "b d"], taken: Float[Tensor, "k q d"], span: Float[Tensor, "m s d"]
    ) -> None:
        """Measure the bracket of the formula in the next backward pass, before that pass reaches the adapters.

        Args:
            features: The features of the batch.
            taken: The directions Q, for all examples (k = 1) or for every example.
            span: The directions S, for all examples (m = 1) or for every example.
        """

        def measure(gradient: Float[Tensor, "b d"]) -> None:
            along_taken, along_all = (
                float(torch.einsum("bd,bqd->bq", gradient, rows.to(gradient).expand(len(gradient), -1, -1)).norm()) ** 2
                for rows in (taken, span)
            )
            self.ratio = max(along_all / along_taken - 1, 0.0) if along_taken else 0.0

        if features.requires_grad:
            self.draws = Draws()
            features.register_hook(measure)

    def _noisy(self, number: int, gradient: Tensor) -> Tensor:
        if self.draws is None:
            return gradient
        size = (self.ratio / gradient.numel()) ** 0.5 * torch.linalg.vector_norm(gradient)
        noise = torch.randn(gradient.shape, dtype=gradient.dtype, generator=self.draws.generator(number))
        return noise.mul_(size).add_(gradient)
