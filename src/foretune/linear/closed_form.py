"""Linearised fine-tuning under the squared loss in closed form (theory.md sections 3 and 4).

Convention: λ and the loss are **sums**, ``½ Σ ‖f(x_i) - y_i‖² + (λ/2) ‖θ - θ0‖²``; ``sum_strength`` converts a λ that
goes with a mean loss. Everything is in the centred output coordinates of ``Kernel``. Time t is learning rate × steps of
gradient descent on that sum (for a mean loss, multiply: dividing λ by a factor multiplies t by it).

With eigenvalues σ_i and eigenvectors v_i of the training kernel, ``c_i = v_i' r0`` and a *gain* g(σ), the model is

    f(X) = f0(X) + K(X, X_train) Σ_i v_i g(σ_i) c_i

where ``μ = σ + λ`` and ``g = (1 - e^{-μt})/μ`` for gradient flow, ``g = (1 - (1-ημ)^k)/μ`` for k steps of gradient
descent, and ``g = 1/μ`` for ridge regression, the limit of both.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.brief import brief
from foretune.kernel import Kernel, Spectrum


def sum_strength(strength: float, num_examples: int, num_outputs: int, loss: str) -> float:
    """The λ of the sum convention that gives the minimiser of a mean loss plus ``(strength/2) ‖θ - θ0‖²``.

    ``λ = strength · n`` for mean cross-entropy, ``strength · n C / 2`` for ``torch.nn.MSELoss`` (theory.md section 0).

    >>> sum_strength(0.5, 10, 2, "mean_squared_error")
    5.0
    """
    return strength * num_examples * (num_outputs / 2 if loss == "mean_squared_error" else 1)


@dataclass(frozen=True, repr=False)
class Fit:
    """Predictions of the linearised model at one time, in centred coordinates.

    Attributes:
        fx_train: Outputs for the training examples (n k).
        fx_eval: Outputs for the evaluation examples (m k).
        risk: ``½ Σ ‖f(x_i) - y_i‖²`` over the training examples: ``R_t = ½ Σ c_i² φ_t(σ_i)²``, ``φ_t = 1 - σ g``.
        effective_dimension: ``Σ σ_i g(σ_i)``: the trace of the map from r0 to the change of the training outputs.
    """

    fx_train: Float[Tensor, "n k"]
    fx_eval: Float[Tensor, "m k"]
    risk: float
    effective_dimension: float
    __repr__ = brief


@dataclass(frozen=True, repr=False)
class Ridge(Fit):
    """Kernel ridge regression: the linearised model trained to the end with the proximal term.

    Attributes:
        strength: λ, in the sum convention.
        leave_one_out: For each training example, its residual ``y_i - f(x_i)`` under the model fitted to all others
            with the same λ (n k).
    """

    strength: float
    leave_one_out: Float[Tensor, "n k"]

    @property
    def leave_one_out_error(self) -> float:
        """Mean squared leave-one-out residual, ``1/n Σ ‖r_i‖²``."""
        return float(self.leave_one_out.square().sum(1).mean())


@dataclass(frozen=True, repr=False)
class Curve:
    """A linearised training run.

    Attributes:
        t: Times (learning rate × steps).
        fits: The model at each of them.
    """

    t: tuple[float, ...]
    fits: tuple[Fit, ...]
    __repr__ = brief

    @property
    def fx_train(self) -> Float[Tensor, "t n k"]:
        """Training outputs at all times."""
        return torch.stack([fit.fx_train for fit in self.fits])

    @property
    def fx_eval(self) -> Float[Tensor, "t m k"]:
        """Evaluation outputs at all times."""
        return torch.stack([fit.fx_eval for fit in self.fits])

    @property
    def risk(self) -> Float[Tensor, " t"]:
        """Training risk ``½ Σ ‖f - y‖²`` at all times."""
        return torch.tensor([fit.risk for fit in self.fits], dtype=torch.float64)


@dataclass(frozen=True, repr=False)
class Modes:
    """A kernel factored once: ridge regressions and training runs of any strength and length follow cheaply.

    Attributes:
        kernel: The kernel.
        spectrum: Of its training part, with eigenvectors V.
        coefficients: ``c = V' r0``.
        k_eval_modes: ``K(X_eval, X_train) V``.
    """

    kernel: Kernel
    spectrum: Spectrum
    coefficients: Float[Tensor, " M"]
    k_eval_modes: Float[Tensor, "E M"]
    __repr__ = brief

    @classmethod
    def of(cls, kernel: "Kernel | Modes") -> "Modes":
        """Factor a kernel, if that is not done yet."""
        if isinstance(kernel, Modes):
            return kernel
        spectrum = kernel.spectrum()
        assert spectrum.eigenvectors is not None
        vectors = spectrum.eigenvectors
        return cls(kernel, spectrum, vectors.T @ kernel.r0, kernel.k_eval_train @ vectors)

    def fit(self, gain: Float[Tensor, " M"]) -> Fit:
        """The model with a gain g(σ_i) for every eigenvalue."""
        kernel, sigma = self.kernel, self.spectrum.eigenvalues
        assert self.spectrum.eigenvectors is not None
        scaled = gain * self.coefficients
        change = self.spectrum.eigenvectors @ (sigma * scaled)
        return Fit(
            fx_train=kernel.fx_train_0 + change.view_as(kernel.fx_train_0),
            fx_eval=kernel.fx_eval_0 + (self.k_eval_modes @ scaled).view_as(kernel.fx_eval_0),
            risk=float((self.coefficients * self.spectrum.remainder(gain)).square().sum() / 2),
            effective_dimension=float((sigma * gain).sum()),
        )

    def leave_one_out(self, strength: float) -> Float[Tensor, "n k"]:
        """``r_i = ([M⁻¹]_ii)⁻¹ [M⁻¹ r0]_i`` with ``M = K + λI`` and k × k blocks (theory.md section 3).

        Raises:
            ValueError: λ is zero and the kernel is singular: then M has no inverse.
        """
        if strength <= 0 and self.spectrum.rank < len(self.coefficients):
            raise ValueError("strength is 0 and the kernel is singular, pass a strength above 0")
        assert self.spectrum.eigenvectors is not None
        n, k = self.kernel.y_train.shape
        inverse = self.spectrum.flow_gain(strength, math.inf)
        vectors = self.spectrum.eigenvectors.view(n, k, -1)
        weighted = vectors * inverse
        blocks = (weighted * vectors).sum(2, keepdim=True) if k == 1 else weighted @ vectors.mT
        return torch.linalg.solve(blocks, (vectors @ (inverse * self.coefficients)))


def ridge(kernel: Kernel | Modes, strength: float) -> Ridge:
    """Kernel ridge regression ``f(X) = f0 + K(X, X_train) (K + λI)⁻¹ r0``, its closed-form leave-one-out included.

    Args:
        kernel: The kernel, or its modes where many strengths are tried.
        strength: λ ≥ 0 in the sum convention. With λ = 0 it is the least-norm interpolation (singular kernels allowed,
            but then every left-out residual is not a number).
    """
    modes = Modes.of(kernel)
    fit = modes.fit(modes.spectrum.flow_gain(strength, math.inf))
    solvable = strength > 0 or modes.spectrum.rank == len(modes.coefficients)
    left_out = modes.leave_one_out(strength) if solvable else torch.full_like(fit.fx_train, math.nan)
    return Ridge(fit.fx_train, fit.fx_eval, fit.risk, fit.effective_dimension, strength, left_out)


def best_strength(kernel: Kernel | Modes, grid: Sequence[float] | None = None) -> float:
    """The λ (sum convention) of a grid with the least leave-one-out error.

    Args:
        kernel: The kernel, or its modes.
        grid: Strengths above 0; by default 25 from 10⁻⁶ to 10² times the mean eigenvalue.

    Raises:
        ValueError: The grid is empty.
    """
    modes = Modes.of(kernel)
    if grid is None:
        mean = modes.spectrum.trace / len(modes.coefficients)
        grid = [mean * 10 ** (-6 + k / 3) for k in range(25)] if mean > 0 else [1.0]
    if not grid:
        raise ValueError("grid is empty, pass at least one strength above 0")
    return min(grid, key=lambda strength: float(modes.leave_one_out(strength).square().sum()))


def gradient_flow(kernel: Kernel | Modes, strength: float, t: Sequence[float]) -> Curve:
    """Gradient flow on the linearised model with the proximal term always on, at times t (0 and ∞ are exact)."""
    modes = Modes.of(kernel)
    return Curve(tuple(t), tuple(modes.fit(modes.spectrum.flow_gain(strength, time)) for time in t))


def gradient_descent(kernel: Kernel | Modes, strength: float, rate: float, steps: Sequence[int]) -> Curve:
    """Full-batch gradient descent ``θ ← θ - η(∇R + λ(θ - θ0))`` on the linearised model, after these numbers of steps.

    It converges for η < 2/(σ_max + λ), and like flow at t = ηk for small η. Times of the curve are η × steps.
    """
    modes = Modes.of(kernel)
    fits = tuple(modes.fit(modes.spectrum.descent_gain(strength, rate, count)) for count in steps)
    return Curve(tuple(rate * count for count in steps), fits)
