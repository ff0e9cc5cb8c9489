"""Bounds on a fine-tune: its distance, its gap to the linearised model, its risk (docs/theory.md P1 to P5).

The loss is a **sum**: ``R = ½ Σ ‖f(x_i) - y_i‖²`` plus the penalty ``(λ/2) ‖δ‖²`` on the displacement ``δ = θ - θ0``.
``ρ0 = ‖y - f0‖`` is the norm of the initial residual. Time t is learning rate × steps. For a loss that is a mean,
that is R divided by s, multiply its λ by s and divide its t by s. ``J0`` is the Jacobian of the outputs in the
parameters at θ0. ``δ̄`` and ``f̄`` belong to the linearised model ``f̄ = f0 + J0 δ̄``, trained with the same loss,
penalty and step. Every number must be 0 or more; otherwise the functions raise ``ValueError``. The bounds hold in
exact arithmetic, so measured values may exceed them by rounding.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Rule = Literal["always", "selective"]


@dataclass(frozen=True)
class Bound:
    """An upper bound, and whether it is proven.

    A Lipschitz constant from sampling or power iteration may be too small. Everything computed from such a constant is
    an estimate too, so the functions of this module pass ``certified`` on.

    >>> print(Bound(0.25, certified=False))
    0.25 (estimated)

    Attributes:
        value: The bound, 0 or more; ∞ means that there is no bound.
        certified: Whether the bound is proven, with proven constants. Otherwise it is an estimate.

    Raises:
        ValueError: The value is negative or not a number.
    """

    value: float
    certified: bool

    def __post_init__(self) -> None:
        _check(value=self.value)

    def __str__(self) -> str:
        return f"{self.value:.3g} ({'certified' if self.certified else 'estimated'})"


@dataclass(frozen=True)
class LinearisationGap:
    """Bounds on the distance between a fine-tuned model and its linearisation.

    Attributes:
        parameters: Bound on ``‖δ_t - δ̄_t‖``.
        outputs: Bound on ``‖f_θ(X) - f̄(X)‖``, where X are the examples whose Jacobian and smoothness were given.
    """

    parameters: Bound
    outputs: Bound


def distance(
    rho0: float, strength: float, t: float, *, rule: Rule = "always", jacobian_norm: Bound | None = None
) -> Bound:
    """Bound how far gradient flow on the squared loss moves by time t (docs/theory.md P1).

    ``‖δ_t‖ ≤ min( ρ0/√(λ + 2/t), (Gρ0/λ)(1 - e^{-λt}) )``. Under the selective rule λ counts as 0:
    ``‖δ_t‖ ≤ min( ρ0√(t/2), Gρ0t )``. The bound grows with t, so it holds on all of [0, t].

    The first term needs no constant of the model. Proof: the objective starts at ρ0²/2 and falls by at least
    ``∫‖δ'‖² ≥ ‖δ_t‖²/t``; what remains is at least ``(λ/2)‖δ_t‖²``. The selective rule comes from arXiv:2602.08239,
    Eq. 8. Under that rule no λ limits the distance of a long run.

    Args:
        rho0: ``ρ0``, the norm of the initial residual.
        strength: λ, the strength of the proximal term, in the sum convention.
        t: Time, learning rate × steps; may be ∞.
        rule: When the proximal term acts: always, or only while ``⟨∇R, δ⟩ ≥ 0``.
        jacobian_norm: G, a bound on ``‖J_θ‖`` along the path. One choice is ``‖J0‖ + βD``, with D from a first call
            without this argument.
    """
    _check(rho0=rho0, strength=strength, t=t)
    strength = strength if rule == "always" else 0.0
    pull = strength + (2 / t if t > 0 else math.inf)
    by_energy = Bound(_times(rho0, 1 / math.sqrt(pull) if pull > 0 else math.inf), certified=True)
    if jacobian_norm is None:
        return by_energy
    by_speed = Bound(_times(jacobian_norm.value * rho0, _discounted(t, strength)), jacobian_norm.certified)
    return min(by_energy, by_speed, key=lambda bound: bound.value)


def linearisation_gap(
    rho0: float, strength: float, t: float, *, distance: Bound, jacobian_norm: Bound, smoothness: Bound
) -> LinearisationGap:
    """Bound the gap between gradient flow on the squared loss and its linearisation at time t (docs/theory.md P2).

    ``‖δ_t - δ̄_t‖ ≤ (βD/λ)(½‖J0‖D + ρ0)(1 - e^{-λt})`` and ``‖f_θ(X) - f̄(X)‖ ≤ ‖J0‖ ‖δ_t - δ̄_t‖ + ½βD²``. For λ = 0
    replace ``(1 - e^{-λt})/λ`` by t. Both bounds vanish as λ grows. They hold for a proximal term that always acts.
    Under the selective rule the two models switch the term on and off at different times, so no such bound holds.

    Args:
        rho0: ``ρ0``, the norm of the initial residual.
        strength: λ, the strength of the proximal term, in the sum convention.
        t: Time, learning rate × steps; may be ∞.
        distance: D, a bound on ``‖δ_s‖`` for all s ≤ t, from :func:`distance`.
        jacobian_norm: ``‖J0‖ = √σ_max``, where σ_max is the largest eigenvalue of the NTK.
        smoothness: β with ``‖J_θ - J0‖ ≤ β‖δ‖`` on the ball of radius D. Sampling gives a value below this supremum,
            so pass a sampled value as an estimate.
    """
    _check(rho0=rho0, strength=strength, t=t)
    bend = _times(smoothness.value, distance.value)  # on ‖J_θ - J0‖
    force = _times(bend, _times(jacobian_norm.value, distance.value) / 2 + rho0)
    drift = _times(force, _discounted(t, strength))
    outputs = _times(jacobian_norm.value, drift) + _times(bend, distance.value) / 2
    certified = distance.certified and jacobian_norm.certified and smoothness.certified
    return LinearisationGap(Bound(drift, certified), Bound(outputs, certified))


def next_gap(gap: Bound, defect: float, *, rate: float, strength: float, curvature: Bound) -> Bound:
    """Bound the gap to the linear model after the next step of gradient descent (docs/theory.md P3).

    ``E_{k+1} = max(|1 - ηλ|, |1 - η(L+λ)|) E_k + η‖h_k‖`` with ``E_0 = 0`` bounds ``‖δ_{k+1} - δ̄_{k+1}‖``. The real run
    takes the steps ``θ_{k+1} = θ_k - η(g_k + λδ_k)``, where g_k is its batch gradient. The linear model takes the same
    steps with the same batches, η and λ. ``h_k = g_k - J_{0,b}' ∇ℓ(f0_b + J_{0,b} δ_k)`` is the real gradient minus the
    gradient of the linear model at the same displacement. The bound holds for plain (stochastic) gradient descent with
    a proximal term that always acts. It does not hold with momentum or Adam.

    The factor is the norm of the linear model's step ``I - η(H+λI)`` with ``0 ≤ H ≤ L``, for any η. It equals 1 - ηλ up
    to ``η(L+2λ) = 2``. It exceeds 1 where ``η(L+λ) > 2``; there the linear run itself may diverge. The bound holds for
    every convex loss ℓ; H is then the mean Hessian between the two displacements.

    Args:
        gap: E_k, the bound before the step.
        defect: ``‖h_k‖``, measured. If it is not finite, the result is ∞.
        rate: η, the learning rate of this step.
        strength: λ, in the convention (sum or mean) of the batch's loss.
        curvature: L, a bound on the largest eigenvalue of the linear model's Hessian on the batch. For
            ``½ Σ ‖f - y‖²`` it is σ_max of the batch's kernel, for summed cross-entropy half of that; divide by the
            batch size for means. Pass ∞ if it is unknown: the result is then ∞ from the second step on.
    """
    _check(rate=rate, strength=strength)
    factor = max(abs(1 - rate * strength), abs(1 - _times(rate, curvature.value + strength)))
    value = _times(factor, gap.value) + _times(rate, defect)
    return Bound(value if math.isfinite(value) else math.inf, gap.certified and curvature.certified)


def output_gap(gap: Bound, remainder: float, jacobian_norm: float) -> Bound:
    """Bound the gap between an output and its linear counterpart after k steps (docs/theory.md P3).

    ``|f(x) - f̄(x)| ≤ |f(x) - f0(x) - J0(x)δ_k| + ‖J0(x)‖ E_k`` for any input x.

    Args:
        gap: E_k, from :func:`next_gap`.
        remainder: ``|f(x) - f0(x) - J0(x)δ_k|``, measured.
        jacobian_norm: ``‖J0(x)‖``, the norm of the output's gradient in the parameters before training.
    """
    return Bound(remainder + _times(jacobian_norm, gap.value), gap.certified)


def nonlinearity(fx: Float[Tensor, "*n"], fx_linear: Float[Tensor, "*n"], fx_0: Float[Tensor, "*n"]) -> float:
    """Measure how far a fine-tuned model is from linear: ``‖f_θ(X) - f0 - J0δ‖ / ‖f_θ(X) - f0‖`` (docs/theory.md P4).

    0 means linear; 1 or more means not linear at all. The result is 0 if neither model's outputs moved, and ∞ if only
    the linear model's outputs moved. Centre logits first (``Kernel.centred``), because adding one number to all logits
    of an example changes no prediction.

    Args:
        fx: ``f_θ(X)``, outputs of the fine-tuned model, best on held-out data.
        fx_linear: ``f0 + J0δ``, outputs of the linearised model at the same displacement.
        fx_0: ``f0``, outputs before training.
    """
    error, moved = float((fx - fx_linear).norm()), float((fx - fx_0).norm())
    return error / moved if moved > 0 else _times(error, math.inf)


def risk_bounds(remainder: Float[Tensor, " N"], rho0: float) -> tuple[float, float]:
    """Bound the training risk R of a linearised run: ``½ρ0² min φ² ≤ R ≤ ½ρ0² max φ²`` (docs/theory.md P5).

    φ is the share of the initial residual that is left along every eigenvector of the kernel (``Spectrum.remainder``).
    Both bounds are reached, for the best and the worst labels. Under gradient flow φ falls with the eigenvalue σ, so
    they are the values at σ_max and σ_min. For k steps of gradient descent at ``Spectrum.best_rate`` without a penalty
    the upper bound is ``½ρ0² ((κ-1)/(κ+1))^{2k}``. The bounds use the size of the residual and not its direction.
    "Lower condition number, lower loss" (arXiv:2602.08239) is the upper bound at a fixed σ_max; it does not depend on
    the labels.

    Args:
        remainder: φ for every eigenvalue.
        rho0: ``ρ0``, the norm of the initial residual.

    Returns:
        The lower and the upper bound, as sums over the training examples.
    """
    _check(rho0=rho0)
    shares = remainder.square()
    return rho0**2 / 2 * float(shares.min()), rho0**2 / 2 * float(shares.max())


def _discounted(t: float, strength: float) -> float:
    """``∫_0^t e^{-λs} ds = (1 - e^{-λt})/λ``."""
    return t if strength == 0 else -math.expm1(-strength * t) / strength


def _times(left: float, right: float) -> float:
    """The product with ``0 · ∞ = 0``: at speed 0 nothing moves, even in infinite time."""
    return left * right if left and right else 0.0


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}, pass 0 or more")
