"""The statements of docs/theory.md sections 0 and 1 about the proximal term."""

import itertools
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import linear_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

import foretune as ft
from foretune.linear import ridge, sum_strength

SGD = torch.optim.SGD


def network(seed: int) -> tuple[list[nn.Parameter], Callable[[], Tensor], float]:
    """Parameters of a random network with one hidden layer, its risk ``½ Σ (f - y)²``, and ρ0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x, y, parameters = draw(6, 3), draw(6, 2), [nn.Parameter(draw(3, 4) / 2), nn.Parameter(draw(4, 2) / 2)]

    def risk() -> Tensor:
        return (torch.tanh(x @ parameters[0]) @ parameters[1] - y).square().sum() / 2

    return parameters, risk, math.sqrt(2 * risk().item())


def path(seed: int, rate: float, steps: int, **term: Any) -> tuple[list[float], list[float], float]:
    """Risk and distance to the anchor at every step of gradient descent, and ρ0."""
    parameters, risk, rho = network(seed)
    anchor = nn.utils.parameters_to_vector(parameters).detach().clone()
    optimizer = ft.proximal(SGD(parameters, lr=rate), **term)
    risks, distances = [risk().item()], [0.0]
    for _ in range(steps):
        optimizer.zero_grad()
        risk().backward()
        optimizer.step()
        risks.append(risk().item())
        distances.append(float((nn.utils.parameters_to_vector(parameters).detach() - anchor).norm()))
    return risks, distances, rho


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    strength=st.sampled_from([0.1, 1.0, 10.0, 50.0]),
    scope=st.sampled_from(["global", "tensor"]),
)
def test_under_the_selective_rule_the_loss_never_rises(seed: int, strength: float, scope: str) -> None:
    risks, _, _ = path(seed, 1e-3, 60, strength=strength, rule="selective", scope=scope)
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(risks))


def test_under_the_rule_always_the_loss_may_rise() -> None:
    """From parameters that have moved far, the pull outweighs the loss."""
    parameters, risk, _ = network(0)
    optimizer = ft.proximal(SGD(parameters, lr=1e-2), strength=0.0)
    for strength, steps in ((0.0, 400), (50.0, 5)):
        optimizer.param_groups[0]["proximal_strength"] = strength
        before = risk().item()
        for _ in range(steps):
            optimizer.zero_grad()
            risk().backward()
            optimizer.step()
    assert risk().item() > before * 1.5


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), strength=st.sampled_from([0.1, 1.0, 10.0, 100.0]))
def test_under_the_rule_always_the_distance_is_bounded(seed: int, strength: float) -> None:
    """docs/theory.md P1: ‖δ‖ ≤ ρ0/√λ, and the penalised risk never rises."""
    risks, distances, rho = path(seed, 1e-3, 150, strength=strength)
    assert max(distances) <= rho / math.sqrt(strength)
    penalised = [risk + strength / 2 * distance**2 for risk, distance in zip(risks, distances, strict=True)]
    assert all(later <= earlier + 1e-12 for earlier, later in itertools.pairwise(penalised))


@pytest.mark.parametrize("scope", ["global", "tensor"])
def test_under_the_selective_rule_the_distance_is_bounded(scope: str) -> None:
    """docs/theory.md P1: ‖δ_t‖ ≤ ρ0 √(t/2)."""
    for seed in range(5):
        _, distances, rho = path(seed, 1e-3, 300, strength=5.0, rule="selective", scope=scope)
        assert all(one <= rho * math.sqrt(1e-3 * step / 2) for step, one in enumerate(distances))


def test_the_mean_convention_converges_to_ridge_with_the_converted_strength() -> None:
    kernel, jacobian = linear_kernel(n=6, k=2)
    delta, strength = nn.Parameter(torch.zeros(20, dtype=torch.float64)), 0.05
    optimizer = ft.proximal(SGD([delta], lr=1.0), strength=strength)
    for _ in range(3000):
        optimizer.zero_grad()
        nn.functional.mse_loss(kernel.fx_train_0 + (jacobian[:12] @ delta).view(6, 2), kernel.y_train).backward()
        optimizer.step()
    fit = ridge(kernel, sum_strength(strength, 6, 2, "mean_squared_error"))
    expected = kernel.fx_eval_0 + (jacobian[12:] @ delta.detach()).view(-1, 2)
    assert_close(fit.fx_eval, expected, rtol=1e-10, atol=1e-10)
