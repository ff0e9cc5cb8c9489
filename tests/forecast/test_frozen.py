"""The correlation of frozen features: against regressions that are fitted without the example that they predict."""

import math

import pytest
import torch
from cases import tiny_task
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foretune.forecast.frozen import STRENGTHS, correlation, frozen_correlation
from foretune.tangents import collect


def drawn(seed: int, n: int = 14, d: int = 4, c: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x, turn, noise = (torch.randn(*size, generator=generator).double() for size in ((n, d), (d, c), (n, c)))
    return x, x @ turn + noise


def left_out_error(x: Tensor, y: Tensor, penalty: float) -> float:
    """Predict every example by a ridge regression on the others, with a free intercept."""
    total = 0.0
    for number in range(len(x)):
        rest = [i for i in range(len(x)) if i != number]
        mean, level = x[rest].mean(0), y[rest].mean(0)
        a = x[rest] - mean
        weights = torch.linalg.solve(a.T @ a + penalty * torch.eye(x.shape[1]).double(), a.T @ (y[rest] - level))
        total += float((y[number] - level - (x[number] - mean) @ weights).square().sum())
    return total


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([3, 20]))
def test_slow_oracle(seed: int, d: int) -> None:
    x, y = drawn(seed, d=d)
    size = float((x - x.mean(0)).square().sum()) / len(x)
    least = min(left_out_error(x, y, strength * size) for strength in STRENGTHS)
    r2 = 1 - least / float((y - y.mean(0)).square().sum())
    assert correlation(x, y) == pytest.approx(math.sqrt(max(r2, 0)), abs=1e-7)


@given(st.integers(0, 10**6), st.floats(1e-2, 1e2), st.floats(-5, 5))
def test_scales_and_shifts_do_not_matter(seed: int, factor: float, shift: float) -> None:
    x, y = drawn(seed)
    assert correlation(factor * x + shift, y) == pytest.approx(correlation(x, y), abs=1e-6)
    assert correlation(x, factor * y + shift) == pytest.approx(correlation(x, y), abs=1e-6)


def test_the_correlation_runs_from_0_to_1() -> None:
    x, y = drawn(1, n=200, d=3)
    assert correlation(x, x @ torch.ones(3, 1).double()) > 0.999
    assert 0.5 < correlation(x, y) < 0.95
    assert correlation(x, torch.randn(200, 1, generator=torch.Generator().manual_seed(5)).double()) < 0.15
    assert correlation(x, torch.ones(200, 2).double()) == correlation(x[:1], y[:1]) == 0
    assert correlation(torch.zeros(200, 3).double(), y) == 0


@pytest.mark.parametrize("num_labels", [1, 3])
def test_the_frozen_correlation_of_tangents(num_labels: int) -> None:
    task = tiny_task("bert", n=30, num_train=24, num_labels=num_labels)
    tangents = collect(task)
    labels = torch.tensor(task.train["labels"])
    y = labels.double()[:, None] if num_labels == 1 else torch.eye(3).double()[labels]
    assert frozen_correlation(tangents) == pytest.approx(correlation(tangents.features[:24].double(), y), abs=1e-9)
