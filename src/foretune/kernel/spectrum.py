"""The eigenvalues of an NTK, and what training makes of them (theory.md sections 3 and 4).

λ is in the sum convention, that of ``½ Σ ‖f(x_i) - y_i‖² + (λ/2) ‖θ - θ0‖²``, and time t is learning rate × steps.
Training gives every eigenvalue a *gain* g: the linearised model's outputs change by ``Σ_i v_i σ_i g(σ_i) c_i`` with
``c_i = v_i' r0``, and ``φ = 1 - σ g`` of the residual is left.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.brief import brief


@dataclass(frozen=True, repr=False)
class Spectrum:
    """Eigenvalues of a kernel, in descending order, negative ones (rounding) set to zero.

    Attributes:
        eigenvalues: σ_1 ≥ ... ≥ σ_N ≥ 0.
        eigenvectors: As columns in the same order, or None if they were not asked for.
        tolerance: Eigenvalues up to ``N eps σ_1`` are zero to working precision, with eps of the type in which the
            kernel's entries were computed.
    """

    eigenvalues: Float[Tensor, " N"]
    eigenvectors: Float[Tensor, "N N"] | None
    tolerance: float
    __repr__ = brief

    @classmethod
    def of(
        cls,
        matrix: Float[Tensor, "N N"],
        *,
        precision: torch.dtype = torch.float64,
        vectors: bool = True,
    ) -> "Spectrum":
        """The spectrum of a symmetric positive semi-definite matrix, computed in float64.

        >>> Spectrum.of(torch.diag(torch.tensor([1.0, 4.0]))).condition_number
        4.0
        """
        matrix = matrix.double()
        with _few_threads(len(matrix)):
            if vectors:
                values, columns = torch.linalg.eigh(matrix)
            else:
                values, columns = torch.linalg.eigvalsh(matrix), None
        values = values.flip(0).clamp(min=0.0)
        tolerance = len(values) * torch.finfo(precision).eps * float(values[0])
        return cls(values, None if columns is None else columns.flip(1), tolerance)

    @property
    def rank(self) -> int:
        """Eigenvalues that are not zero to working precision."""
        return int((self.eigenvalues > self.tolerance).sum())

    @property
    def condition_number(self) -> float:
        """``κ = σ_1/σ_N``; ∞ where σ_N is zero to working precision, as when two examples coincide or N > p."""
        if self.rank < len(self.eigenvalues):
            return math.inf
        return float(self.eigenvalues[0] / self.eigenvalues[-1])

    @property
    def trace(self) -> float:
        """``Σ σ_i``, not divided by N."""
        return float(self.eigenvalues.sum())

    def regularised_condition_number(self, strength: float) -> float:
        """``κ_λ = (σ_1 + λ)/(σ_N + λ)`` with λ in the sum convention; κ for λ = 0."""
        if strength == 0:
            return self.condition_number
        return float((self.eigenvalues[0] + strength) / (self.eigenvalues[-1] + strength))

    def effective_dimension(self, strength: float) -> float:
        """``Σ σ_i/(σ_i + λ)`` with λ in the sum convention; the rank for λ = 0."""
        if strength == 0:
            return float(self.rank)
        return float((self.eigenvalues / (self.eigenvalues + strength)).sum())

    def flow_gain(self, strength: float, t: float) -> Float[Tensor, " N"]:
        """``g(σ) = (1 - e^{-μt})/μ`` with ``μ = σ + λ``; at t = ∞ it is 1/μ, and 0 where μ is zero."""
        mu = self._mu(strength)
        if math.isinf(t):
            return torch.where(mu > 0, 1 / mu, 0.0)
        return torch.where(mu > 0, -torch.expm1(-mu * t) / mu, t)

    def descent_gain(self, strength: float, rate: float, steps: int) -> Float[Tensor, " N"]:
        """``g(σ) = (1 - (1-ημ)^k)/μ`` with ``μ = σ + λ``; ``ηk`` where μ is zero."""
        mu = self._mu(strength)
        step = rate * mu
        decayed = torch.where(step < 1, -torch.expm1(steps * torch.log1p(-step)), 1 - (1 - step) ** steps)
        return torch.where(mu > 0, decayed / mu, rate * steps)

    def best_rate(self, strength: float) -> float:
        """``η = 2/(μ_1 + μ_N)``, the rate at which gradient descent shrinks the slowest mode fastest.

        Modes with ``μ = σ + λ`` zero to working precision never move and do not count; without any other, η is 0.
        """
        mu = self._mu(strength)
        moving = mu[mu > 0]
        return float(2 / (moving[0] + moving[-1])) if len(moving) else 0.0

    def remainder(self, gain: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """``φ(σ) = 1 - σ g(σ)``: the share of each mode's initial residual that is left."""
        return 1 - self.eigenvalues * gain

    def _mu(self, strength: float) -> Float[Tensor, " N"]:
        """``σ + λ``; without λ, eigenvalues that are zero to working precision count as zero.

        Raises:
            ValueError: λ is negative or not a number.
        """
        if not strength >= 0:
            raise ValueError(f"strength is {strength}, pass 0 or more")
        sigma = self.eigenvalues
        return sigma + strength if strength > 0 else torch.where(sigma > self.tolerance, sigma, 0.0)


@contextmanager
def _few_threads(size: int) -> Generator[None]:
    """One thread for small matrices: more gain little and, where cores are shared, cost up to 30 times as much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if size <= 2048 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
