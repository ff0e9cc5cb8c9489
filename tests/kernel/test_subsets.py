"""docs/theory.md P6 to P10: random trials without a violation, a counterexample, and a training error that rises."""

import math

import pytest
import torch
import trials
from cases import linear_kernel
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from foretune.kernel.subsets import Perturbation, objective_bounds, perturbation, regularised_bounds, residual_bounds


def matrix(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_no_bound_is_violated_in_random_trials(seed: int) -> None:
    assert [result for result in trials.subset_trials(seed) if not result.holds] == []


def test_the_papers_layer_selection_theorem_needs_a_condition() -> None:
    """For K_S = 1, K_T = 3, σ = 1 its upper bound ‖r_S‖/(1 - η) is negative (arXiv:2602.08239, docs/theory.md P9)."""
    result = perturbation(matrix([1.0]), matrix([3.0]), torch.tensor([2.0]).double(), 1.0)
    ratio = result.residual.after / result.residual.before
    assert ratio == pytest.approx(0.4)
    assert result.absolute == pytest.approx(1.5)
    lower, upper = residual_bounds(result.absolute)
    assert lower == pytest.approx(0.4) and upper == math.inf
    assert ratio > 1 / (1 - result.absolute)  # violates the paper's upper bound, -2
    assert result.residual.upper == pytest.approx(
        result.residual.before
    )  # κ_σ = 1: with one eigenvalue the residual cannot rise


def test_the_training_error_can_rise_while_the_ridge_objective_falls() -> None:
    """The rise can come arbitrarily close to (κ_σ+1)/(2√κ_σ) (docs/theory.md P9 and P10)."""
    added = torch.outer(torch.tensor([3.0, -1.0]), torch.tensor([3.0, -1.0])).double()
    result = perturbation(matrix([8.0, 0.0], [0.0, 0.0]), 1e6 * added, torch.tensor([27.0, 1.0]).double(), 1.0)
    ratio = result.residual.after / result.residual.before
    assert ratio == pytest.approx((9 + 1) / (2 * 3), rel=1e-5)
    assert result.residual.after <= result.residual.upper * (1 + 1e-9)
    assert result.objective.after < result.objective.before


def test_bounds_are_tight_for_small_additions() -> None:
    kernel, _ = linear_kernel(p=40)
    small = perturbation(kernel.k_train_train, 1e-6 * torch.eye(10).double(), kernel.r0, 0.1)
    for change in (small.residual, small.objective, small.regularised_condition_number):
        assert change.upper / change.lower == pytest.approx(1.0, abs=1e-4)
    assert residual_bounds(0.0) == objective_bounds(0.0) == (1.0, 1.0)
    assert regularised_bounds(7.0, 0.0) == (7.0, 7.0)
    nothing = perturbation(kernel.k_train_train, torch.zeros(10, 10).double(), kernel.r0, 0.1)
    assert nothing.relative == nothing.absolute == pytest.approx(0.0)
    assert nothing.condition_number.upper == pytest.approx(nothing.condition_number.before)


def test_the_perturbation_by_a_block_of_a_kernel() -> None:
    kernel, _ = linear_kernel(p=40)
    result = kernel.perturbation(["first"], ["second"], 0.5)
    one, other = (kernel.blocks[name][:10] for name in ("first.B", "second.B"))
    inverse = torch.linalg.inv(one + 0.5 * torch.eye(10).double())
    values, vectors = torch.linalg.eigh(inverse)
    root = vectors * values.sqrt() @ vectors.T  # symmetric
    assert result.relative == pytest.approx(float(torch.linalg.matrix_norm(root @ other @ root, 2)))
    assert result.absolute == pytest.approx(float(torch.linalg.matrix_norm(inverse @ other, 2)))
    assert result.relative <= result.absolute
    assert result.residual.before == pytest.approx(float((0.5 * inverse @ kernel.r0).norm()))
    assert result.objective.before == pytest.approx(float(0.5 * kernel.r0 @ inverse @ kernel.r0))
    solved = torch.linalg.solve(one + other + 0.5 * torch.eye(10).double(), kernel.r0)
    assert result.residual.after == pytest.approx(float(0.5 * solved.norm()))
    assert result.objective.after == pytest.approx(float(0.5 * kernel.r0 @ solved))
    assert result.condition_number.after == pytest.approx(kernel.condition_number())
    assert_close(result.largest.after, float(kernel.spectrum().eigenvalues[0]))


def test_singular_kernels_have_infinite_condition_numbers() -> None:
    kernel, _ = linear_kernel(p=6)  # both blocks have rank 3 of 10
    result = kernel.perturbation(["first"], ["second"], 0.5)
    kappa = result.condition_number
    assert kappa.before == kappa.after == kappa.upper == math.inf
    assert result.regularised_condition_number.after < result.regularised_condition_number.upper < math.inf
    assert isinstance(result, Perturbation)


def test_wrong_blocks_and_strengths_are_refused() -> None:
    kernel, _ = linear_kernel()
    with pytest.raises(ValueError, match=r"added: second\.B is already in base"):
        kernel.perturbation(["first", "second"], ["second"], 1.0)
    with pytest.raises(ValueError, match="no block 'third'"):
        kernel.perturbation(["first"], ["third"], 1.0)
    with pytest.raises(ValueError, match=r"strength is 0\.0"):
        kernel.perturbation(["first"], ["second"], 0.0)
