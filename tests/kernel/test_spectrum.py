"""Eigenvalues of kernels, and the numbers computed from them."""

import math

import pytest
import torch
from cases import linear_kernel

from foretune.kernel import Kernel, Spectrum, alignment, subsampled_condition_number, summary


def diagonal(*values: float) -> Spectrum:
    return Spectrum.of(torch.diag(torch.tensor(values, dtype=torch.float64)))


def test_the_numbers_of_a_diagonal_matrix() -> None:
    spectrum = diagonal(1.0, 4.0, 2.0)
    assert spectrum.eigenvalues.tolist() == [4.0, 2.0, 1.0]
    assert spectrum.condition_number == pytest.approx(4.0)
    assert spectrum.regularised_condition_number(1.0) == pytest.approx(2.5)
    assert spectrum.regularised_condition_number(0.0) == pytest.approx(4.0)
    assert spectrum.trace == pytest.approx(7.0)
    assert spectrum.effective_dimension(2.0) == pytest.approx(4 / 6 + 2 / 4 + 1 / 3)
    assert spectrum.effective_dimension(0.0) == pytest.approx(3.0)
    assert spectrum.eigenvectors is not None
    rebuilt = spectrum.eigenvectors * spectrum.eigenvalues @ spectrum.eigenvectors.T
    assert torch.allclose(rebuilt, torch.diag(torch.tensor([1.0, 4.0, 2.0]).double()))


def test_a_singular_kernel_has_an_infinite_condition_number() -> None:
    kernel, _ = linear_kernel(n=5, k=2, p=4)  # N = 10 > p
    assert kernel.condition_number() == math.inf
    assert kernel.spectrum().rank == 4
    assert kernel.spectrum().regularised_condition_number(1.0) < math.inf
    assert kernel.spectrum().effective_dimension(0.0) == 4
    mean, std = subsampled_condition_number(kernel, fraction=1.0)
    assert mean == math.inf and math.isnan(std)
    assert diagonal(1.0, 0.0).condition_number == math.inf
    assert diagonal(0.0, 0.0).condition_number == math.inf


def test_eigenvalues_are_the_squared_singular_values_of_the_jacobian() -> None:
    kernel, jacobian = linear_kernel(p=40)
    values = torch.linalg.svdvals(jacobian[:10]).square()
    assert torch.allclose(kernel.spectrum().eigenvalues, values)
    assert kernel.spectrum() is kernel.spectrum()  # computed once


def test_alignment_is_the_cosine_of_the_centred_kernels() -> None:
    kernel, _ = linear_kernel(n=6, k=2, p=40)
    centre = torch.kron(torch.eye(6) - 1 / 6, torch.eye(2)).double()
    left = centre @ kernel.k_train_train @ centre
    y = centre @ kernel.y_train.flatten()
    right = torch.outer(y, y)
    assert alignment(kernel) == pytest.approx(float((left * right).sum() / left.norm() / right.norm()))
    perfect = Kernel(
        {"w": torch.cat([right, right])}, kernel.y[:6].repeat(2, 1), kernel.f0[:6].repeat(2, 1), 6, "cross_entropy"
    )
    assert alignment(perfect) == pytest.approx(1.0)


def test_subsamples_keep_the_outputs_of_an_example_together() -> None:
    # four examples with two outputs of different scale: every subset of examples has κ = 100
    block = torch.kron(torch.eye(4), torch.diag(torch.tensor([1.0, 100.0]))).double()
    kernel = Kernel({"w": block}, torch.zeros(4, 2).double(), torch.zeros(4, 2).double(), 4, "cross_entropy")
    assert subsampled_condition_number(kernel) == (pytest.approx(100.0), pytest.approx(0.0))
    one, two = linear_kernel(p=40)[0], linear_kernel(p=40)[0]
    assert subsampled_condition_number(one, seed=1) == subsampled_condition_number(two, seed=1)
    assert subsampled_condition_number(one, seed=1) != subsampled_condition_number(one, seed=2)
    assert alignment(kernel) == pytest.approx(0.0)  # constant targets


@pytest.mark.parametrize("bad", [{"fraction": 0.0}, {"fraction": 1.5}, {"draws": 1}])
def test_subsampling_refuses_wrong_fractions_and_draws(bad: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(bad))):
        subsampled_condition_number(linear_kernel()[0], **bad)  # type: ignore[arg-type]


def test_summary_lists_at_most_512_eigenvalues() -> None:
    kernel, _ = linear_kernel(n=300, k=2, p=700)
    numbers = summary(kernel, 2.0)
    assert len(numbers["spectrum"]) == 512 and numbers["spectrum"][0] == kernel.spectrum().eigenvalues[0]
    assert numbers["strength"] == pytest.approx(2.0) and numbers["trace"] == kernel.spectrum().trace
