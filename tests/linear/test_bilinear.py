"""Sums of bilinear forms against the plain one, in float64."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from foretune.linear.bilinear import Bilinear

ROWS, DIRECTIONS = 5, 3


def layers(count: int) -> list[tuple[Tensor, Tensor, float, Tensor, Tensor]]:
    """Two layers with one input, then one with another; widths, ranks and scalings differ."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second = draw(ROWS, 6), draw(ROWS, 4)
    return [
        (
            inputs,
            draw(ROWS, DIRECTIONS, outputs),
            scaling,
            draw(count, rank, inputs.shape[1]).requires_grad_(),
            draw(count, outputs, rank).requires_grad_(),
        )
        for inputs, outputs, rank, scaling in ((first, 7, 2, 0.3), (first, 3, 4, -(2**0.5)), (second, 5, 1, 1.1))
    ]


@pytest.mark.parametrize("count", [1, 3])
def test_values_and_gradients_are_those_of_the_plain_sum(count: int) -> None:
    given = layers(count)
    forms, factors = Bilinear(), [factor for *_, a, b in given for factor in (a, b)]
    for layer in given:
        forms.add(*layer)
    plain = torch.stack(
        [s * torch.einsum("tqo,kor,kri,ti->tqk", gradients, b, a, inputs) for inputs, gradients, s, a, b in given]
    ).sum(0)
    found, weights = forms.sum(), torch.randn(ROWS, DIRECTIONS, count, dtype=torch.float64)
    assert_close(found, plain, rtol=1e-10, atol=1e-10)
    for mine, true in zip(
        torch.autograd.grad((weights * found).sum(), factors),
        torch.autograd.grad((weights * plain).sum(), factors),
        strict=True,
    ):
        assert_close(mine, true, rtol=1e-10, atol=1e-10)
    assert forms.size == ROWS * DIRECTIONS * count * (2 + 4 + 1)
