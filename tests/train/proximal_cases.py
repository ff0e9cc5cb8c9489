"""Parameters, gradients and tolerances that the tests of the proximal term share."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
RULES = [("always", "global"), ("selective", "global"), ("selective", "tensor")]


def starts() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes: list[tuple[int, ...]] = [(3, 2), (4,), (2, 2)]
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def gradient(theta: Tensor, step: int) -> Tensor:
    """Of a loss that changes from step to step, so that ⟨g, θ - θ0⟩ takes both signs."""
    return theta**3 / 3 + torch.cos(2.0 * step + torch.arange(theta.numel(), dtype=theta.dtype)).view_as(theta)


def learn(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: Iterable[int]) -> None:
    for step in steps:
        for parameter in parameters:
            parameter.grad = gradient(parameter.detach(), step)
        optimizer.step()
