"""How far a fine-tune goes, how far from its linearisation, how low its risk (theory.md P1 to P5).

Convention: the loss is a **sum**, ``R = ½ Σ ‖f(x_i) - y_i‖²`` with the penalty ``(λ/2) ‖δ‖²`` on the displacement
``δ = θ - θ0``; ``ρ0 = ‖y - f0‖``, and time t is learning rate × steps. Dividing the loss by s (a mean) is the same run
with λ multiplied by s and t divided by s. ``J0`` is the Jacobian at θ0, ``δ̄`` and ``f̄`` belong to the linearised model
``f̄ = f0 + J0 δ̄`` trained with the same loss, penalty and step. Numbers must be 0 or more, else it is a
``ValueError``. Bounds hold in exact arithmetic: a truth that is measured has its own rounding.
"""

import math
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float
from torch import Tensor

Rule = Literal["always", "selective"]


@dataclass(frozen=True)
class Bound:
    """An upper bound, with its warrant.

    A Lipschitz constant that was sampled or power-iterated is only known to be *at least* what was found, and so is
    everything that is computed from it: the functions here hand ``certified`` on.

    >>> print(Bound(0.25, certified=False))
    0.25 (estimated)

    Attributes:
        value: At least 0; ∞ says that nothing is known.
        certified: Whether it is proven, from constants that are proven; otherwise it is an estimate.

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
    """How far a fine-tuned model can be from its linearisation.

    Attributes:
        parameters: On ``‖δ_t - δ̄_t‖``.
        outputs: On ``‖f_θ(X) - f̄(X)‖``, over the examples whose Jacobian and smoothness were given.
    """

    parameters: Bound
    outputs: Bound


def distance(
    rho0: float, strength: float, t: float, *, rule: Rule = "always", jacobian_norm: Bound | None = None
) -> Bound:
    """How far gradient flow on the squared loss moves by time t (theory.md P1).

    ``‖δ_t‖ ≤ min( ρ0/√(λ + 2/t), (Gρ0/λ)(1 - e^{-λt}) )``, and under the selective rule the same with λ = 0:
    ``min( ρ0√(t/2), Gρ0t )``. It grows with t, so it holds on all of [0, t].

    The first term needs no constant. It combines P1's ``ρ0/√λ`` and ``ρ0√(t/2)`` and is below both: from ρ0²/2 the
    objective falls by ``∫‖δ'‖² ≥ ‖δ_t‖²/t``, and ``(λ/2)‖δ_t‖²`` of it is left at least. The selective rule is that
    of the paper (arXiv:2602.08239, Eq. 8): under it no λ limits the distance of a long run.

    Args:
        rho0: ``ρ0``, the norm of the initial residual.
        strength: λ of the proximal term.
        t: Time, ∞ allowed.
        rule: When the term acts: always, or only where ``⟨∇R, δ⟩ ≥ 0``.
        jacobian_norm: G, on ``‖J_θ‖`` along the path (for instance ``‖J0‖ + βD`` with D from a first call without it).
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
    """How far gradient flow on the squared loss, always rule, is from its linearisation by time t (theory.md P2).

    ``‖δ_t - δ̄_t‖ ≤ (βD/λ)(½‖J0‖D + ρ0)(1 - e^{-λt})`` and ``‖f_θ(X) - f̄(X)‖ ≤ ‖J0‖ ‖δ_t - δ̄_t‖ + ½βD²``; both vanish as
    λ grows, and ``(1 - e^{-λt})/λ`` is t for λ = 0. Under the selective rule the two models switch the term at
    different times, and there is no such bound.

    Args:
        rho0: ``ρ0``, the norm of the initial residual.
        strength: λ of the proximal term.
        t: Time, ∞ allowed.
        distance: D, on ``‖δ_s‖`` for s ≤ t, from :func:`distance`.
        jacobian_norm: ``‖J0‖ = √σ_max`` of the NTK.
        smoothness: β with ``‖J_θ - J0‖ ≤ β‖δ‖`` on the ball of radius D. It is a supremum: what sampling finds is below
            it, so mark it as an estimate.
    """
    _check(rho0=rho0, strength=strength, t=t)
    bend = _times(smoothness.value, distance.value)  # on ‖J_θ - J0‖
    force = _times(bend, _times(jacobian_norm.value, distance.value) / 2 + rho0)
    drift = _times(force, _discounted(t, strength))
    outputs = _times(jacobian_norm.value, drift) + _times(bend, distance.value) / 2
    certified = distance.certified and jacobian_norm.certified and smoothness.certified
    return LinearisationGap(Bound(drift, certified), Bound(outputs, certified))


def next_gap(gap: Bound, defect: float, *, rate: float, strength: float, curvature: Bound) -> Bound:
    """``‖δ_{k+1} - δ̄_{k+1}‖`` from ``‖δ_k - δ̄_k‖``, along a real run of (stochastic) gradient descent (theory.md P3).

    ``E_{k+1} = max(|1 - ηλ|, |1 - η(L+λ)|) E_k + η‖h_k‖`` from ``E_0 = 0``, where the run does
    ``θ_{k+1} = θ_k - η(g_k + λδ_k)``, the linear model follows it with the same batches, η and λ (always rule), and
    ``h_k = g_k - J_{0,b}' ∇ℓ(f0_b + J_{0,b} δ_k)`` is the run's batch gradient minus the linear model's at the same
    displacement. For plain steps only: not for momentum, nor for Adam.

    theory.md asks for ``η(L+λ) ≤ 1``, where the factor is 1 - ηλ. This factor is the norm of the linear model's
    step ``I - η(H+λI)``, ``0 ≤ H ≤ L``, at any η, so nothing need be asked: it is 1 - ηλ up to ``η(L+2λ) = 2``, and
    above 1 from ``η(L+λ) = 2``, where the linear run itself need not contract. It holds for every convex loss ℓ,
    not the squared one only: H is then the mean Hessian between the two displacements.

    Args:
        gap: E_k.
        defect: ``‖h_k‖``, measured; where it is not finite the result is ∞.
        rate: η of this step.
        strength: λ in the convention of the batch's loss.
        curvature: L, on the largest eigenvalue of the linear model's Hessian on the batch: σ_max of the batch's kernel
            for ``½ Σ ‖f - y‖²``, half of it for summed cross-entropy, divided by the batch's size for means. Where
            it is unknown pass ∞: the result is ∞ from the second step on.
    """
    _check(rate=rate, strength=strength)
    factor = max(abs(1 - rate * strength), abs(1 - _times(rate, curvature.value + strength)))
    value = _times(factor, gap.value) + _times(rate, defect)
    return Bound(value if math.isfinite(value) else math.inf, gap.certified and curvature.certified)


def output_gap(gap: Bound, remainder: float, jacobian_norm: float) -> Bound:
    """``|f(x) - f̄(x)| ≤ |f(x) - f0(x) - J0(x)δ_k| + ‖J0(x)‖ E_k`` for any x after k steps (theory.md P3).

    Args:
        gap: E_k, from :func:`next_gap`.
        remainder: ``|f(x) - f0(x) - J0(x)δ_k|``, measured.
        jacobian_norm: ``‖J0(x)‖``.
    """
    return Bound(remainder + _times(jacobian_norm, gap.value), gap.certified)


def nonlinearity(fx: Float[Tensor, "*n"], fx_linear: Float[Tensor, "*n"], fx_0: Float[Tensor, "*n"]) -> float:
    """``‖f_θ(X) - f0 - J0δ‖ / ‖f_θ(X) - f0‖``: 0 is linear, 1 or more not linear at all (theory.md P4).

    It is 0 where neither the outputs nor the linear ones moved, and ∞ where only the linear ones did. Centre logits
    first (``Kernel.centred``): a number added to all of an example's changes nothing.

    Args:
        fx: ``f_θ(X)``, outputs of the fine-tuned model, best on held-out data.
        fx_linear: ``f0 + J0δ``, outputs of its linearisation at the same displacement.
        fx_0: Outputs before training.
    """
    error, moved = float((fx - fx_linear).norm()), float((fx - fx_0).norm())
    return error / moved if moved > 0 else _times(error, math.inf)


def risk_bounds(remainder: Float[Tensor, " N"], rho0: float) -> tuple[float, float]:
    """``½ρ0² min φ² ≤ R ≤ ½ρ0² max φ²``, the risks of a linearised run that some targets have (theory.md P5).

    φ is what is left of each mode of the initial residual (``Spectrum.remainder``). Under gradient flow it falls in
    σ, so the bounds are those at σ_max and σ_min: P5. Gradient descent at ``Spectrum.best_rate`` and without a
    penalty has an upper one of ``½ρ0² ((κ-1)/(κ+1))^{2k}``. They know the size of the residual, not its direction:
    the paper's "lower condition number, lower loss" (arXiv:2602.08239) is the upper one at a fixed σ_max, not a
    statement about labels.

    Args:
        remainder: φ of every eigenvalue.
        rho0: ``ρ0``, the norm of the initial residual.
    """
    _check(rho0=rho0)
    shares = remainder.square()
    return rho0**2 / 2 * float(shares.min()), rho0**2 / 2 * float(shares.max())


def _discounted(t: float, strength: float) -> float:
    """``∫_0^t e^{-λs} ds = (1 - e^{-λt})/λ``."""
    return t if strength == 0 else -math.expm1(-strength * t) / strength


def _times(one: float, other: float) -> float:
    """The product with ``0 · ∞ = 0``: nothing happens at no speed, for however long."""
    return one * other if one and other else 0.0


def _check(**values: float) -> None:
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} is {value}, pass 0 or more")
