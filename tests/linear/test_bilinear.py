"""Sums of bilinear forms, compared with plain sums in float64."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from foretune.linear.bilinear import Bilinear, Part

ROWS, DIRECTIONS = 5, 3
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
Layers = list[tuple[Tensor, Tensor, list[Part]]]


def layers(columns: int) -> Layers:
    """Two layers with the same input and one with another. Widths, ranks, scalings and the columns of layers differ."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    first, second = draw(ROWS, 6), draw(ROWS, 4)
    result: Layers = []
    for number, (inputs, width) in enumerate(((first, 7), (first, 3), (second, 5))):
        parts = [
            Part(
                column,
                (0.3, -(2**0.5), 1.1)[(number + column) % 3],
                draw(rank, inputs.shape[1]).requires_grad_(),
                draw(width, rank).requires_grad_(),
            )
            for column, rank in zip(range(columns), (2, 4, 1), strict=False)
            if (number, column) != (1, 0) or columns == 1
        ]
        result.append((inputs, draw(ROWS, DIRECTIONS, width), [*parts, parts[0]._replace(scaling=0.7)]))
    return result


def both(given: Layers, columns: int) -> tuple[Bilinear, list[Tensor], Tensor]:
    """The sums, the factors in them, and the plain sums."""
    forms, plain = Bilinear(columns), [torch.zeros(ROWS, DIRECTIONS, dtype=torch.float64) for _ in range(columns)]
    for inputs, gradients, parts in given:
        forms.add(inputs, gradients, parts)
        for column, s, a, b in parts:
            plain[column] = plain[column] + s * torch.einsum("tqo,or,ri,ti->tq", gradients, b, a, inputs)
    return forms, [factor for *_, parts in given for _, _, *pair in parts for factor in pair], torch.stack(plain, 2)


@pytest.mark.parametrize("columns", [1, 3])
def test_values_and_gradients_equal_those_of_plain_sums(columns: int) -> None:
    given = layers(columns)
    forms, factors, plain = both(given, columns)
    sums, weights = forms.sum(), torch.randn(ROWS, DIRECTIONS, columns, dtype=torch.float64)
    assert_close(sums, plain, **EXACT)
    for gradient, true in zip(
        torch.autograd.grad((weights * sums).sum(), factors),
        torch.autograd.grad((weights * plain).sum(), factors),
        strict=True,
    ):
        assert_close(gradient, true, **EXACT)
    assert forms.size == ROWS * DIRECTIONS * sum(len(part.a) for *_, parts in given for part in parts)


@pytest.mark.parametrize("wrong", [math.nan, math.inf])
def test_infinite_and_nan_values_stay_in_their_column(wrong: float) -> None:
    given = layers(3)
    with torch.no_grad():
        given[0][2][1].a[0, 0] = wrong
    column = given[0][2][1].column
    others = [k for k in range(3) if k != column]
    forms, factors, plain = both(given, 3)
    sums = forms.sum()
    assert not sums[..., column].isfinite().any()
    assert_close(sums[..., others], plain[..., others], **EXACT)
    loss = (sums**2).sum(2)
    (true,) = torch.autograd.grad((plain[..., others] ** 2).sum(), factors[:1])
    (gradient,) = torch.autograd.grad(loss.sum(), factors[:1])
    assert given[0][2][0].column != column and gradient.isfinite().all()
    assert_close(gradient, true, **EXACT)
