"""Kernel logistic regression: the optimum, its conventions, and saturated outputs."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from cases import linear_kernel
from torch import Tensor
from torch.testing import assert_close

from foretune.kernel import Kernel
from foretune.linear import LogisticFit, Modes, logistic, sum_strength
from foretune.tangents import centring

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-9}


def classes(c: int = 3, n: int = 7, p: int = 9, scale: float = 2.0) -> tuple[Kernel, Tensor]:
    """A random linear model with one-hot targets, and its Jacobian."""
    kernel, jacobian = linear_kernel(n=n, m=4, k=c - 1, p=p)
    y = torch.nn.functional.one_hot(torch.arange(n + 4) % c, c).double() @ centring(c).T
    blocks = {name: scale * block for name, block in kernel.blocks.items()}
    return replace(kernel, blocks=blocks, y=y, loss="cross_entropy"), scale**0.5 * jacobian


def cross_entropy(kernel: Kernel, fx_train: Tensor) -> Tensor:
    labels = kernel.outputs(kernel.y_train).argmax(1)
    return torch.nn.functional.cross_entropy(kernel.outputs(fx_train), labels, reduction="sum")


def gradient(kernel: Kernel, jacobian: Tensor, theta: Tensor, strength: float) -> Tensor:
    """The gradient of the objective in the parameters, by autograd and torch's own loss."""
    theta = theta.clone().requires_grad_()
    fx = kernel.fx_train_0 + (jacobian[: len(kernel.r0)] @ theta).view_as(kernel.fx_train_0)
    (cross_entropy(kernel, fx) + strength / 2 * theta.square().sum()).backward()
    assert theta.grad is not None
    return theta.grad


def displacement(fit: LogisticFit, kernel: Kernel, jacobian: Tensor) -> Tensor:
    """The displacement δ of a fit, from the condition of stationarity ``λ δ = J' (y - P p)``."""
    probabilities = kernel.outputs(fit.fx_train).softmax(1)
    residual = kernel.y_train - kernel.centred(probabilities)
    return jacobian[: len(kernel.r0)].T @ residual.flatten() / fit.strength


@pytest.mark.parametrize("strength", [1e-4, 0.1, 10.0])
@pytest.mark.parametrize("p", [5, 40])
@pytest.mark.parametrize("c", [2, 3, 5])
def test_the_gradient_at_the_optimum_is_zero(c: int, p: int, strength: float) -> None:
    kernel, jacobian = classes(c, p=p)
    fit = logistic(kernel, strength)
    assert fit.converged and fit.steps < 30
    theta = displacement(fit, kernel, jacobian)
    assert_close(fit.fx_train, kernel.fx_train_0 + (jacobian[: 7 * (c - 1)] @ theta).view(7, -1), rtol=1e-7, atol=1e-8)
    assert_close(fit.fx_eval, kernel.fx_eval_0 + (jacobian[7 * (c - 1) :] @ theta).view(4, -1), rtol=1e-7, atol=1e-8)
    assert float(gradient(kernel, jacobian, theta, strength).norm()) < 1e-8
    assert fit.loss == pytest.approx(float(cross_entropy(kernel, fit.fx_train)))
    assert fit.objective == pytest.approx(fit.loss + strength / 2 * float(theta.square().sum()))


@pytest.mark.parametrize("strength", [1e-3, 0.5])
@pytest.mark.parametrize("c", [2, 4])
def test_kernel_and_parameter_form_agree(c: int, strength: float) -> None:
    kernel, jacobian = classes(c, p=5)
    assert jacobian.shape[1] < len(kernel.r0)
    one, other = logistic(Modes.of(kernel), strength), logistic(kernel, strength, jacobian)
    assert_close(one.fx_train, other.fx_train, **EXACT)
    assert_close(one.fx_eval, other.fx_eval, **EXACT)
    assert one.objective == pytest.approx(other.objective, rel=1e-12)


def test_a_wide_jacobian_is_not_used() -> None:
    kernel, jacobian = classes(p=40)
    unread = torch.full_like(jacobian, math.nan)
    assert torch.equal(logistic(kernel, 0.1, unread).fx_eval, logistic(kernel, 0.1).fx_eval)


@pytest.mark.parametrize("p", [6, 40])
def test_gradient_descent_converges_to_the_fit(p: int) -> None:
    kernel, jacobian = classes(p=p)
    strength, theta = 0.3, torch.zeros(p, dtype=torch.float64)
    rate = 1 / (float(kernel.spectrum().eigenvalues[0]) / 2 + strength)
    for _ in range(2000):
        theta = theta - rate * gradient(kernel, jacobian, theta, strength)
    expected = kernel.f0 + (jacobian @ theta).view_as(kernel.f0)
    fit = logistic(kernel, strength)
    assert_close(fit.fx_train, expected[:7], **EXACT)
    assert_close(fit.fx_eval, expected[7:], **EXACT)


def test_a_large_strength_leaves_the_model_unchanged() -> None:
    kernel, _ = classes()
    fit = logistic(kernel, 1e12)
    assert_close(fit.fx_train, kernel.fx_train_0, rtol=0, atol=1e-10)
    assert_close(fit.fx_eval, kernel.fx_eval_0, rtol=0, atol=1e-10)
    zero = replace(kernel, blocks={"zero": torch.zeros_like(kernel.matrix)})
    assert torch.equal(logistic(zero, 0.1).fx_eval, kernel.fx_eval_0)


def test_the_fit_converges_from_saturated_outputs() -> None:
    kernel, jacobian = classes(p=40)
    wrong = replace(kernel, f0=-300 * kernel.y)  # outputs that are certain of wrong classes
    fit = logistic(wrong, 1e-3)
    theta = displacement(fit, wrong, jacobian)
    assert fit.converged and float(gradient(wrong, jacobian, theta, 1e-3).norm()) < 1e-6


def test_the_mean_convention_has_the_same_minimiser() -> None:
    kernel, jacobian = classes()
    fit = logistic(kernel, sum_strength(0.05, 7, 3, "cross_entropy"))
    theta = displacement(fit, kernel, jacobian).requires_grad_()
    fx = kernel.outputs(kernel.fx_train_0 + (jacobian[:14] @ theta).view(7, 2))
    labels = kernel.outputs(kernel.y_train).argmax(1)
    mean = torch.nn.functional.cross_entropy(fx, labels) + 0.05 / 2 * theta.square().sum()
    (slope,) = torch.autograd.grad(mean, theta)
    assert float(slope.norm()) < 1e-10


def test_problems_that_cannot_be_solved_are_refused() -> None:
    kernel, jacobian = classes()
    for strength in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="strength"):
            logistic(kernel, strength)
    with pytest.raises(ValueError, match="too small for this kernel"):
        logistic(replace(kernel, f0=200 * kernel.y), 1e-300, jacobian[:, :1].expand(-1, 3))
    with pytest.raises(ValueError, match="jacobian has 3 rows"):
        logistic(kernel, 1.0, jacobian[:3])
    with pytest.raises(ValueError, match="use ridge"):
        logistic(linear_kernel(k=1)[0], 1.0)
