"""Gradient descent, gradient flow and ridge regression on a kernel, compared with explicit computations."""

import math
from typing import Any

import pytest
import torch
from cases import linear_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from foretune.kernel import Kernel
from foretune.linear import Modes, best_strength, gradient_descent, gradient_flow, ridge, sum_strength

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
STRENGTHS = [0.0, 0.3]


def descend(kernel: Kernel, jacobian: Tensor, strength: float, rate: float, steps: int) -> Tensor:
    """Outputs of the linear model after gradient descent on its parameters, step by step."""
    theta, train = torch.zeros(jacobian.shape[1], dtype=torch.float64), jacobian[: len(kernel.r0)]
    for _ in range(steps):
        theta = theta - rate * (train.T @ (train @ theta - kernel.r0) + strength * theta)
    return kernel.f0 + (jacobian @ theta).view_as(kernel.f0)


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("p", [6, 40])  # fewer and more parameters than training outputs
def test_gradient_descent_equals_explicit_steps(strength: float, p: int) -> None:
    kernel, jacobian = linear_kernel(p=p)
    curve = gradient_descent(kernel, strength, 0.2, [0, 1, 7, 200])
    assert curve.t == (0.0, 0.2, pytest.approx(1.4), 40.0)
    for place, steps in enumerate([0, 1, 7, 200]):
        expected = descend(kernel, jacobian, strength, 0.2, steps)
        assert_close(curve.fx_train[place], expected[:5], **EXACT)
        assert_close(curve.fx_eval[place], expected[5:], **EXACT)
        assert_close(curve.risk[place], (expected[:5] - kernel.y_train).square().sum() / 2, **EXACT)


@pytest.mark.parametrize("strength", STRENGTHS)
def test_gradient_flow_is_the_limit_of_small_steps(strength: float) -> None:
    kernel, _ = linear_kernel()
    flow = gradient_flow(kernel, strength, [1.5])
    gaps = [
        float((gradient_descent(kernel, strength, 1.5 / steps, [steps]).fx_eval - flow.fx_eval).norm())
        for steps in (1000, 2000)
    ]
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.01) and gaps[1] < 1e-3
    derivative = gradient_flow(kernel, strength, [1.5 - 1e-5, 1.5 + 1e-5]).fx_train
    matrix = kernel.k_train_train
    away = (kernel.y_train - flow.fx_train[0]).flatten()
    delta = (flow.fx_train[0] - kernel.fx_train_0).flatten()
    assert_close(
        (derivative[1] - derivative[0]).flatten() / 2e-5, matrix @ away - strength * delta, rtol=1e-6, atol=1e-8
    )


@pytest.mark.parametrize("p", [6, 40])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_gradient_flow_is_exact_at_time_zero_and_infinity(strength: float, p: int) -> None:
    kernel, jacobian = linear_kernel(p=p)
    curve = gradient_flow(kernel, strength, [0.0, math.inf])
    assert torch.equal(curve.fx_train[0], kernel.fx_train_0) and torch.equal(curve.fx_eval[0], kernel.fx_eval_0)
    assert float(curve.risk[0]) == pytest.approx(float(kernel.r0.square().sum()) / 2)
    fit = ridge(kernel, strength)
    assert torch.equal(curve.fx_eval[1], fit.fx_eval) and torch.equal(curve.fx_train[1], fit.fx_train)
    train = jacobian[:10]
    if strength:
        theta = torch.linalg.solve(train.T @ train + strength * torch.eye(p).double(), train.T @ kernel.r0)
    else:
        theta = torch.linalg.pinv(train) @ kernel.r0  # the solution of least norm, which gradient descent from 0 finds
    expected = kernel.f0 + (jacobian @ theta).view_as(kernel.f0)
    assert_close(fit.fx_train, expected[:5], rtol=1e-8, atol=1e-9)
    assert_close(fit.fx_eval, expected[5:], rtol=1e-8, atol=1e-9)
    assert_close(gradient_flow(kernel, strength, [1e9]).fx_eval[0], fit.fx_eval, rtol=1e-6, atol=1e-6)
    assert fit.effective_dimension == pytest.approx(kernel.spectrum().effective_dimension(strength))


@pytest.mark.parametrize("k", [1, 2])
@pytest.mark.parametrize("strength", STRENGTHS)
def test_ridge_and_leave_one_out_equal_explicit_solutions(strength: float, k: int) -> None:
    kernel, _ = linear_kernel(n=6, k=k, p=40)
    fit, matrix = ridge(kernel, strength), kernel.k_train_train + strength * torch.eye(6 * k).double()
    weights = torch.linalg.solve(matrix, kernel.r0)
    assert_close(fit.fx_eval, kernel.fx_eval_0 + (kernel.k_eval_train @ weights).view(-1, k), **EXACT)
    for i in range(6):
        keep = torch.tensor([j for j in range(6 * k) if j // k != i])
        rest = torch.linalg.solve(matrix[keep][:, keep], kernel.r0[keep])
        out = slice(i * k, i * k + k)
        expected = kernel.r0[out] - kernel.k_train_train[out][:, keep] @ rest
        assert_close(fit.leave_one_out[i], expected, rtol=1e-8, atol=1e-8)
    assert fit.leave_one_out_error == pytest.approx(float(fit.leave_one_out.square().sum() / 6))


def test_leave_one_out_of_a_singular_kernel_needs_a_strength() -> None:
    kernel, _ = linear_kernel(p=6)
    assert bool(ridge(kernel, 0.0).leave_one_out.isnan().all())
    with pytest.raises(ValueError, match="strength is 0 and the kernel is singular"):
        Modes.of(kernel).leave_one_out(0.0)
    with pytest.raises(ValueError, match="strength is -1"):
        ridge(kernel, -1.0)


def test_the_best_strength_has_the_least_leave_one_out_error() -> None:
    kernel, _ = linear_kernel(n=12, p=10)
    modes, grid = Modes.of(kernel), [1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]
    errors = [ridge(modes, strength).leave_one_out_error for strength in grid]
    assert best_strength(modes, grid) == grid[errors.index(min(errors))]
    assert ridge(modes, best_strength(kernel)).leave_one_out_error <= min(errors) * 1.05
    with pytest.raises(ValueError, match="grid is empty"):
        best_strength(modes, [])


def test_the_mean_convention_has_the_same_minimiser() -> None:
    kernel, jacobian = linear_kernel(n=6, k=2)
    strength = sum_strength(0.05, 6, 2, "mean_squared_error")
    theta = torch.zeros(20, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS([theta], max_iter=200, tolerance_grad=1e-12, tolerance_change=0.0)

    def closure() -> Tensor:
        optimiser.zero_grad()
        fx = kernel.fx_train_0 + (jacobian[:12] @ theta).view(6, 2)
        loss = torch.nn.functional.mse_loss(fx, kernel.y_train) + 0.05 / 2 * theta.square().sum()
        loss.backward()
        return loss

    optimiser.step(closure)
    expected = kernel.fx_eval_0 + (jacobian[12:] @ theta.detach()).view(-1, 2)
    assert_close(ridge(kernel, strength).fx_eval, expected, rtol=1e-6, atol=1e-6)
    assert sum_strength(0.5, 10, 3, "cross_entropy") == pytest.approx(5.0)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    p=st.integers(2, 30),
    strength=st.sampled_from([0.0, 1e-3, 0.5, 20.0]),
    t=st.floats(0.0, 100.0),
)
def test_the_risk_never_rises(seed: int, p: int, strength: float, t: float) -> None:
    kernel, _ = linear_kernel(p=p, seed=seed)
    modes = Modes.of(kernel)
    risk = float(gradient_flow(modes, strength, [t]).risk[0])
    slack = 1e-12 * float(kernel.r0.square().sum())
    later = float(gradient_flow(modes, strength, [t + 1]).risk[0])
    assert later <= risk + slack
