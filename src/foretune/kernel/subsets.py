"""What adding parameters does to a kernel and to its ridge regression (theory.md P6 to P10).

A kernel is a sum over blocks of parameters: S are those there are, T those that are added, ``K_{S∪T} = K_S + K_T``.
The ridge strength σ > 0 is in the sum convention, ``½ Σ ‖f(x_i) - y_i‖² + (σ/2) ‖δ‖²``, and ridge regression leaves the
residual ``r_S = σ (K_S + σI)⁻¹ r0``. ``κ`` is a condition number, ``κ_σ`` that of ``K + σI``.
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.kernel.spectrum import Spectrum


@dataclass(frozen=True)
class Change:
    """A number before and after parameters were added, and the bounds on the latter: ``lower ≤ after ≤ upper``."""

    before: float
    after: float
    lower: float
    upper: float


@dataclass(frozen=True)
class Perturbation:
    """What adding parameters T to S does on the training examples, beside what the bounds say of it.

    Attributes:
        strength: σ, in the sum convention.
        relative: ``η_rel = ‖(K_S+σI)^{-½} K_T (K_S+σI)^{-½}‖``.
        absolute: ``η = ‖(K_S+σI)⁻¹ K_T‖``, at least as large.
        largest: σ_1 of the kernel, P6.
        smallest: σ_N of the kernel, P6.
        condition_number: κ of the kernel, P6 and P7.
        regularised_condition_number: κ_σ, P8.
        residual: ‖r‖, whose square is the training sum of squares, P9.
        objective: ``σ r0' (K+σI)⁻¹ r0``, twice the least value of the ridge objective, P10.
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
    """``σ_i(K_S) + σ_N(K_T) ≤ σ_i(K_S + K_T) ≤ σ_i(K_S) + σ_1(K_T)`` (Weyl; theory.md P6), eigenvalues descending."""
    return base + added[-1], base + added[0]


def condition_number_bounds(base: Spectrum, added: Spectrum) -> tuple[float, float]:
    """Bounds on ``κ(K_S + K_T)`` from both spectra (theory.md P6 and P7).

    ``(σ_1(K_S) + σ_N(K_T))/(σ_N(K_S) + σ_1(K_T)) ≤ κ(K_S + K_T) ≤ (σ_1(K_S) + σ_1(K_T))/(σ_N(K_S) + σ_N(K_T))``.
    The upper one is the mediant of both κ and so at most ``max(κ(K_S), κ(K_T))``, P7. It is finite if one of the
    kernels is positive definite, and ∞ where its denominator is zero to working precision.
    """
    floor = 2 * max(base.tolerance, added.tolerance)
    lower, upper = eigenvalue_bounds(base.eigenvalues, added.eigenvalues)
    return (
        max(1.0, _ratio(float(lower[0]), float(upper[-1]), 0.0)),
        _ratio(float(upper[0]), float(lower[-1]), floor),
    )


def regularised_bounds(condition_number: float, relative: float) -> tuple[float, float]:
    """``κ_σ(K_S)/(1 + η_rel) ≤ κ_σ(K_S + K_T) ≤ (1 + η_rel) κ_σ(K_S)`` (theory.md P8).

    For every eigenvalue of ``K_S + K_T + σI`` is within ``[1, 1 + η_rel]`` of that of ``K_S + σI``.

    Args:
        condition_number: ``κ_σ(K_S)``.
        relative: ``η_rel = ‖(K_S+σI)^{-½} K_T (K_S+σI)^{-½}‖``.
    """
    return max(1.0, condition_number / (1 + relative)), condition_number * (1 + relative)


def residual_bounds(absolute: float, condition_number: float = math.inf) -> tuple[float, float]:
    """Bounds on ``‖r_{S∪T}‖ / ‖r_S‖``, how ridge residuals shrink or grow (theory.md P9).

    ``1/(1+η) ≤ ‖r_{S∪T}‖/‖r_S‖ ≤ 1/(1-η)``, the upper one **only if η < 1** (∞ otherwise). The layer-selection theorem
    of the paper (arXiv:2602.08239) omits that condition: for ``K_S = 1, K_T = 3, σ = 1`` the ratio is 0.4, but with
    η = 3/2 its upper bound is -2.

    Whatever η is, ``‖r_{S∪T}‖/‖r_S‖ ≤ (κ_σ+1)/(2√κ_σ)`` with ``κ_σ = κ(K_S+σI)``, and the lesser of both is given.
    For with ``A = K_S+σI`` the ratio is at most the norm of ``A^{-½} C A^{½}`` for some ``0 ≤ C ≤ I``. As the norm
    is convex in C it is largest at a projection, and there Wielandt's inequality bounds it. Kernels come as close
    to it as one likes: adding parameters can raise the training error by as much.

    Args:
        absolute: ``η = ‖(K_S+σI)⁻¹ K_T‖``, the largest singular value.
        condition_number: ``κ_σ(K_S)``; left out, P9 alone is given.
    """
    perturbed = 1 / (1 - absolute) if absolute < 1 else math.inf
    always = (condition_number + 1) / (2 * math.sqrt(condition_number)) if condition_number < math.inf else math.inf
    return 1 / (1 + absolute), min(perturbed, always)


def objective_bounds(relative: float) -> tuple[float, float]:
    """``1/(1 + η_rel) ≤ o_{S∪T}/o_S ≤ 1`` for the ridge objective ``o = σ r0' (K+σI)⁻¹ r0`` (theory.md P10, P8).

    It never rises when blocks are added; the training error ``‖r_S‖²`` can.

    Args:
        relative: ``η_rel = ‖(K_S+σI)^{-½} K_T (K_S+σI)^{-½}‖``.
    """
    return 1 / (1 + relative), 1.0


def perturbation(
    k_base: Float[Tensor, "N N"],
    k_added: Float[Tensor, "N N"],
    r0: Float[Tensor, " N"],
    strength: float,
    precision: torch.dtype = torch.float64,
) -> Perturbation:
    """What adding K_T to K_S does, in truth and by P6 to P10; five eigendecompositions in float64.

    Args:
        k_base: K_S, symmetric and positive semi-definite.
        k_added: K_T, likewise.
        r0: The initial residual.
        strength: σ, in the sum convention.
        precision: In which the kernels' entries were computed.

    Raises:
        ValueError: σ is not above 0: without it neither ratio is bounded.
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
    """``‖(σ (K+σI)⁻¹)^power r0‖``: the ridge residual's norm, and for ½ the root of the ridge objective."""
    assert spectrum.eigenvectors is not None
    shares = strength / (spectrum.eigenvalues + strength)
    return float((shares**power * (spectrum.eigenvectors.T @ r0.double())).norm())


def _ratio(above: float, below: float, floor: float) -> float:
    return above / below if below > floor else math.inf
