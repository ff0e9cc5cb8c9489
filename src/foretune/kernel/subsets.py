"""How a kernel and its ridge regression change when parameters are added (docs/theory.md P6 to P10).

A kernel is a sum over parts of the parameters: ``K_{S∪T} = K_S + K_T``, where S are the parameters at the start and T
the added ones. Ridge regression is least squares with a penalty. Its strength σ > 0 is in the sum convention,
``½ Σ ‖f(x_i) - y_i‖² + (σ/2) ‖δ‖²``. It leaves the residual ``r_S = σ (K_S + σI)⁻¹ r0``, where r0 is the initial
residual. ``κ`` is the condition number (largest over smallest eigenvalue) of a kernel K, ``κ_σ`` that of ``K + σI``.
σ_1 and σ_N are the largest and the smallest eigenvalue of a kernel.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.kernel.spectrum import Spectrum


@dataclass(frozen=True)
class Change:
    """A number before and after parameters are added, and the bounds on its new value: ``lower ≤ after ≤ upper``."""

    before: float
    after: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Perturbation:
    """How adding parameters T to S changes the kernel of the training examples, with the bounds of docs/theory.md.

    Attributes:
        strength: σ, the ridge strength, in the sum convention.
        relative: ``η_rel = ‖(K_S+σI)^{-½} K_T (K_S+σI)^{-½}‖``.
        absolute: ``η = ‖(K_S+σI)⁻¹ K_T‖``; it is never below η_rel.
        largest: The largest eigenvalue σ_1; bounds from P6.
        smallest: The smallest eigenvalue σ_N; bounds from P6.
        condition_number: κ; bounds from P6 and P7.
        regularised_condition_number: κ_σ; bounds from P8.
        residual: ``‖r‖``, whose square is the training sum of squares; bounds from P9.
        objective: ``σ r0' (K+σI)⁻¹ r0``, twice the minimum of the ridge objective; bounds from P8 and P10.
    """

    strength: float
    relative: float
    absolute: float
    largest: Change
    smallest: Change
    condition_number: Change
    regularised_condition_number: Change
    residual: Change
    objective: Change


def eigenvalue_bounds(
    base: Float[Tensor, " N"], added: Float[Tensor, " N"]
) -> tuple[Float[Tensor, " N"], Float[Tensor, " N"]]:
    """Bound the eigenvalues of a sum of two kernels (Weyl's inequality, docs/theory.md P6).

    ``σ_i(K_S) + σ_N(K_T) ≤ σ_i(K_S + K_T) ≤ σ_i(K_S) + σ_1(K_T)``.

    Args:
        base: Eigenvalues of K_S in descending order.
        added: Eigenvalues of K_T in descending order.

    Returns:
        The lower and the upper bounds.
    """
    return base + added[-1], base + added[0]


def condition_number_bounds(base: Spectrum, added: Spectrum) -> tuple[float, float]:
    """Bound the condition number ``κ(K_S + K_T)`` by the eigenvalues of both kernels (docs/theory.md P6 and P7).

    ``(σ_1(K_S) + σ_N(K_T))/(σ_N(K_S) + σ_1(K_T)) ≤ κ(K_S + K_T) ≤ (σ_1(K_S) + σ_1(K_T))/(σ_N(K_S) + σ_N(K_T))``.
    The upper bound is the mediant of both κ and so at most ``max(κ(K_S), κ(K_T))``, which is P7. It is finite if one of
    the kernels is positive definite. It is ∞ if its denominator is zero up to rounding.

    Args:
        base: The spectrum of K_S.
        added: The spectrum of K_T.

    Returns:
        The lower and the upper bound.
    """
    floor = 2 * max(base.tolerance, added.tolerance)
    lower, upper = eigenvalue_bounds(base.eigenvalues, added.eigenvalues)
    return (
        max(1.0, _ratio(float(lower[0]), float(upper[-1]), 0.0)),
        _ratio(float(upper[0]), float(lower[-1]), floor),
    )


def regularised_bounds(condition_number: float, relative: float) -> tuple[float, float]:
    """Bound the regularised condition number after parameters are added (docs/theory.md P8).

    ``κ_σ(K_S)/(1 + η_rel) ≤ κ_σ(K_S + K_T) ≤ (1 + η_rel) κ_σ(K_S)``. The reason: every eigenvalue of ``K_S + K_T + σI``
    is 1 to 1 + η_rel times the corresponding eigenvalue of ``K_S + σI``.

    Args:
        condition_number: ``κ_σ(K_S)``.
        relative: ``η_rel = ‖(K_S+σI)^{-½} K_T (K_S+σI)^{-½}‖``.

    Returns:
        The lower and the upper bound.
    """
    return max(1.0, condition_number / (1 + relative)), condition_number * (1 + relative)


def residual_bounds(absolute: float, condition_number: float = math.inf) -> tuple[float, float]:
    """Bound the factor ``‖r_{S∪T}‖ / ‖r_S‖`` by which the ridge residual changes (docs/theory.md P9).

    ``1/(1+η) ≤ ‖r_{S∪T}‖/‖r_S‖ ≤ 1/(1-η)``. The upper bound holds **only if η < 1**; otherwise it is ∞. The
    layer-selection theorem of arXiv:2602.08239 omits this condition. A counterexample is ``K_S = 1, K_T = 3, σ = 1``:
    the true ratio is 0.4, and with η = 3/2 the theorem's upper bound is -2.

    For every η, ``‖r_{S∪T}‖/‖r_S‖ ≤ (κ_σ+1)/(2√κ_σ)`` with ``κ_σ = κ(K_S+σI)``. The function returns the smaller upper
    bound. Proof: let ``A = K_S+σI``. The ratio is at most the norm of ``A^{-½} C A^{½}`` for some
    ``0 ≤ C ≤ I``. The norm is convex in C, so it is largest at a projection, where Wielandt's inequality bounds it.
    Some kernels come arbitrarily close to this bound, so adding parameters can raise the training error that far.

    Args:
        absolute: ``η = ‖(K_S+σI)⁻¹ K_T‖``, the largest singular value.
        condition_number: ``κ_σ(K_S)``. Without it the second upper bound is not used.

    Returns:
        The lower and the upper bound.
    """
    perturbed = 1 / (1 - absolute) if absolute < 1 else math.inf
    always = (condition_number + 1) / (2 * math.sqrt(condition_number)) if condition_number < math.inf else math.inf
    return 1 / (1 + absolute), min(perturbed, always)


def objective_bounds(relative: float) -> tuple[float, float]:
    """Bound the factor by which the ridge objective changes (docs/theory.md P8 and P10).

    ``1/(1 + η_rel) ≤ o_{S∪T}/o_S ≤ 1`` for ``o = σ r0' (K+σI)⁻¹ r0``. The objective never rises when parameters are
    added. The training error ``‖r_S‖²`` can rise.

    Args:
        relative: ``η_rel = ‖(K_S+σI)^{-½} K_T (K_S+σI)^{-½}‖``.

    Returns:
        The lower and the upper bound.
    """
    return 1 / (1 + relative), 1.0


def perturbation(
    k_base: Float[Tensor, "N N"],
    k_added: Float[Tensor, "N N"],
    r0: Float[Tensor, " N"],
    strength: float,
    precision: torch.dtype = torch.float64,
) -> Perturbation:
    """Compare the kernel K_S with K_S + K_T, and the true changes with their bounds (docs/theory.md P6 to P10).

    It takes five eigendecompositions in float64.

    Args:
        k_base: K_S, symmetric and positive semi-definite.
        k_added: K_T, symmetric and positive semi-definite.
        r0: The residual before training.
        strength: σ, the ridge strength, in the sum convention.
        precision: The type in which the kernels' entries were computed.

    Raises:
        ValueError: σ is not above 0. The bounds need σ > 0.
    """
    if not strength > 0:
        raise ValueError(f"strength is {strength}, pass a number above 0")
    base, both = (Spectrum.of(matrix, precision=precision) for matrix in (k_base, k_base + k_added))
    added = Spectrum.of(k_added, precision=precision, vectors=False)
    assert base.eigenvectors is not None
    scale = base.eigenvalues + strength
    rotated = base.eigenvectors.T @ k_added.double() @ base.eigenvectors
    solved = rotated / scale[:, None]
    relative = _largest(rotated / (scale[:, None] * scale).sqrt())
    absolute = math.sqrt(_largest(solved.T @ solved))
    lower, upper = eigenvalue_bounds(base.eigenvalues, added.eigenvalues)
    largest, smallest = (
        Change(*(float(values[index]) for values in (base.eigenvalues, both.eigenvalues, lower, upper)))
        for index in (0, -1)
    )
    kappa, kappa_after = (spectrum.regularised_condition_number(strength) for spectrum in (base, both))
    residual, residual_after = (_residual(spectrum, r0, strength, 1.0) for spectrum in (base, both))
    objective, objective_after = (_residual(spectrum, r0, strength, 0.5) ** 2 for spectrum in (base, both))
    return Perturbation(
        strength,
        relative,
        absolute,
        largest,
        smallest,
        Change(base.condition_number, both.condition_number, *condition_number_bounds(base, added)),
        Change(kappa, kappa_after, *regularised_bounds(kappa, relative)),
        Change(residual, residual_after, *(residual * factor for factor in residual_bounds(absolute, kappa))),
        Change(objective, objective_after, *(objective * factor for factor in objective_bounds(relative))),
    )


def _largest(matrix: Float[Tensor, "N N"]) -> float:
    return float(Spectrum.of(matrix, vectors=False).eigenvalues[0])


def _residual(spectrum: Spectrum, r0: Float[Tensor, " N"], strength: float, power: float) -> float:
    """``‖(σ (K+σI)⁻¹)^power r0‖``: the norm of the ridge residual for power 1, the root of the objective for ½."""
    assert spectrum.eigenvectors is not None
    shares = strength / (spectrum.eigenvalues + strength)
    return float((shares**power * (spectrum.eigenvectors.T @ r0.double())).norm())


def _ratio(above: float, below: float, floor: float) -> float:
    return above / below if below > floor else math.inf
