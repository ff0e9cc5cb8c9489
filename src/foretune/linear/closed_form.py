"""Linearised fine-tuning under the squared loss in closed form (docs/theory.md sections 3 and 4).

The loss is a **sum**: ``½ Σ ‖f(x_i) - y_i‖² + (λ/2) ‖θ - θ0‖²``. Its second part is the proximal term, a penalty on the
distance from the parameters before training. ``sum_strength`` converts the λ of a mean loss. All outputs are in the
centred coordinates of ``Kernel``. Time t is learning rate × steps of gradient descent on this sum. A run on the loss
divided by s, with strength λ' and time t', is the run on the sum with ``λ = s λ'`` and ``t = t'/s``.

The training kernel has eigenvalues σ_i and eigenvectors v_i. With ``c_i = v_i' r0``, where r0 is the residual before
training, and a *gain* g(σ) that depends on the kind of training, the model is

    f(X) = f0(X) + K(X, X_train) Σ_i v_i g(σ_i) c_i

Let ``μ = σ + λ``. Gradient flow has ``g = (1 - e^{-μt})/μ``, k steps of gradient descent at rate η have
``g = (1 - (1-ημ)^k)/μ``, and ridge regression, the limit of both, has ``g = 1/μ``.
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
    """Convert the strength of a penalty beside a mean loss to the λ of the sum convention, with the same minimiser.

    ``λ = strength · n`` for mean cross-entropy, ``strength · n C / 2`` for ``torch.nn.MSELoss`` (docs/theory.md
    section 0).

    >>> sum_strength(0.5, 10, 2, "mean_squared_error")
    5.0

    Args:
        strength: The strength in ``mean loss + (strength/2) ‖θ - θ0‖²``.
        num_examples: Number of training examples n.
        num_outputs: Number of outputs of an example C.
        loss: ``cross_entropy`` or ``mean_squared_error``.
    """
    return strength * num_examples * (num_outputs / 2 if loss == "mean_squared_error" else 1)


@dataclass(frozen=True, repr=False)
class Fit:
    """Predictions of the linearised model at one time, in centred coordinates.

    Attributes:
        fx_train: Outputs on the training examples (n k).
        fx_eval: Outputs on the evaluation examples (m k).
        risk: ``½ Σ ‖f(x_i) - y_i‖²`` over the training examples. It is ``½ Σ c_i² φ(σ_i)²`` with ``φ = 1 - σ g``.
        effective_dimension: ``Σ σ_i g(σ_i)``, the trace of the map from r0 to the change of the training outputs.
    """

    fx_train: Float[Tensor, "n k"]
    fx_eval: Float[Tensor, "m k"]
    risk: float
    effective_dimension: float
    __repr__ = brief


@dataclass(frozen=True, repr=False)
class Ridge(Fit):
    """Kernel ridge regression, that is the linearised model trained to the end with the proximal term.

    Attributes:
        strength: λ, in the sum convention.
        leave_one_out: The residual ``y_i - f(x_i)`` of every training example under the model that was fitted to all
            other examples with the same λ (n k).
    """

    strength: float
    leave_one_out: Float[Tensor, "n k"]

    @property
    def leave_one_out_error(self) -> float:
        """The mean squared leave-one-out residual, ``1/n Σ ‖r_i‖²``."""
        return float(self.leave_one_out.square().sum(1).mean())


@dataclass(frozen=True, repr=False)
class Curve:
    """A linearised training run.

    Attributes:
        t: Times (learning rate × steps).
        fits: The model at these times.
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
    """A kernel with its eigendecomposition, from which fits of any strength and length follow cheaply.

    Attributes:
        kernel: The kernel.
        spectrum: The spectrum of the training kernel, with eigenvectors V.
        coefficients: ``c = V' r0``, the initial residual in the basis of the eigenvectors.
        k_eval_modes: ``K(X_eval, X_train) V``.
    """

    kernel: Kernel
    spectrum: Spectrum
    coefficients: Float[Tensor, " M"]
    k_eval_modes: Float[Tensor, "E M"]
    __repr__ = brief

    @classmethod
    def of(cls, kernel: "Kernel | Modes") -> "Modes":
        """Factor a kernel. ``Modes`` are returned unchanged."""
        if isinstance(kernel, Modes):
            return kernel
        spectrum = kernel.spectrum()
        assert spectrum.eigenvectors is not None
        vectors = spectrum.eigenvectors
        return cls(kernel, spectrum, vectors.T @ kernel.r0, kernel.k_eval_train @ vectors)

    def fit(self, gain: Float[Tensor, " M"]) -> Fit:
        """The model whose gain is g(σ_i) for every eigenvalue."""
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
        """Leave-one-out residuals of ridge regression without refitting (docs/theory.md section 3).

        ``r_i = ([M⁻¹]_ii)⁻¹ [M⁻¹ r0]_i`` with ``M = K + λI``, where ``[M⁻¹]_ii`` is the k × k block of example i.

        Args:
            strength: λ, in the sum convention.

        Raises:
            ValueError: λ is zero and the kernel is singular, so M has no inverse.
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
    """Fit kernel ridge regression, ``f(X) = f0 + K(X, X_train) (K + λI)⁻¹ r0``, with leave-one-out residuals.

    Args:
        kernel: The kernel. Pass its ``Modes`` to try many strengths cheaply.
        strength: λ ≥ 0, in the sum convention. With λ = 0 the fit interpolates with the smallest norm. If the kernel is
            also singular, all leave-one-out residuals are NaN.
    """
    modes = Modes.of(kernel)
    fit = modes.fit(modes.spectrum.flow_gain(strength, math.inf))
    solvable = strength > 0 or modes.spectrum.rank == len(modes.coefficients)
    left_out = modes.leave_one_out(strength) if solvable else torch.full_like(fit.fx_train, math.nan)
    return Ridge(fit.fx_train, fit.fx_eval, fit.risk, fit.effective_dimension, strength, left_out)


def best_strength(kernel: Kernel | Modes, grid: Sequence[float] | None = None) -> float:
    """The λ of a grid with the smallest leave-one-out error.

    Args:
        kernel: The kernel, or its ``Modes``.
        grid: Strengths above 0, in the sum convention. By default these are 25 values from 10⁻⁶ to 10² times the mean
            eigenvalue.

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
    """Gradient flow on the linearised model, with a proximal term that always acts.

    Args:
        kernel: The kernel, or its ``Modes``.
        strength: λ, in the sum convention.
        t: Times, learning rate × steps. 0 and ∞ are exact.
    """
    modes = Modes.of(kernel)
    return Curve(tuple(t), tuple(modes.fit(modes.spectrum.flow_gain(strength, time)) for time in t))


def gradient_descent(kernel: Kernel | Modes, strength: float, rate: float, steps: Sequence[int]) -> Curve:
    """Full-batch gradient descent ``θ ← θ - η(∇R + λ(θ - θ0))`` on the linearised model.

    It converges if η < 2/(σ_max + λ). For small η it equals gradient flow at time t = ηk. The times of the curve are
    η × steps.

    Args:
        kernel: The kernel, or its ``Modes``.
        strength: λ, in the sum convention.
        rate: η, the learning rate.
        steps: Numbers of steps k at which the curve is given.
    """
    modes = Modes.of(kernel)
    fits = tuple(modes.fit(modes.spectrum.descent_gain(strength, rate, count)) for count in steps)
    return Curve(tuple(rate * count for count in steps), fits)
