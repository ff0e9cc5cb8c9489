"""The eigenvalues of an NTK, and how fast training fits along its eigenvectors (docs/theory.md sections 3 and 4).

The NTK (neural tangent kernel) has eigenvalues σ_i and eigenvectors v_i. r0 is the residual before training. λ is the
strength of the penalty in the sum convention, ``½ Σ ‖f(x_i) - y_i‖² + (λ/2) ‖θ - θ0‖²``. Time t is learning rate ×
steps. Training has a *gain* g for every eigenvalue: it changes the linearised model's outputs by
``Σ_i v_i σ_i g(σ_i) c_i`` with ``c_i = v_i' r0``. It leaves the share ``φ = 1 - σ g`` of the residual along v_i.
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
    """The eigenvalues of a kernel in descending order.

    Rounding can make an eigenvalue negative. Such a value is set to zero.

    Attributes:
        eigenvalues: σ_1 ≥ ... ≥ σ_N ≥ 0.
        eigenvectors: The eigenvectors as columns in the same order, or None if they were not computed.
        tolerance: ``N eps σ_1``, where eps is the machine precision of the type in which the kernel's entries were
            computed. Eigenvalues up to this value count as zero.
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
        """Compute the spectrum of a symmetric positive semi-definite matrix in float64.

        >>> Spectrum.of(torch.diag(torch.tensor([1.0, 4.0]))).condition_number
        4.0

        Args:
            matrix: The matrix.
            precision: The type in which its entries were computed. It sets the tolerance.
            vectors: Whether to compute the eigenvectors.
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
        """Number of eigenvalues above the tolerance."""
        return int((self.eigenvalues > self.tolerance).sum())

    @property
    def condition_number(self) -> float:
        """The condition number ``κ = σ_1/σ_N``.

        It is ∞ if σ_N is not above the tolerance. That happens if two examples are equal or there are more outputs (N)
        than parameters (p).
        """
        if self.rank < len(self.eigenvalues):
            return math.inf
        return float(self.eigenvalues[0] / self.eigenvalues[-1])

    @property
    def trace(self) -> float:
        """The trace ``Σ σ_i``, not divided by N."""
        return float(self.eigenvalues.sum())

    def regularised_condition_number(self, strength: float) -> float:
        """The regularised condition number ``κ_λ = (σ_1 + λ)/(σ_N + λ)``, with λ in the sum convention; κ if λ = 0."""
        if strength == 0:
            return self.condition_number
        return float((self.eigenvalues[0] + strength) / (self.eigenvalues[-1] + strength))

    def effective_dimension(self, strength: float) -> float:
        """How many directions the data can fit: ``Σ σ_i/(σ_i + λ)``, λ in the sum convention; the rank if λ = 0."""
        if strength == 0:
            return float(self.rank)
        return float((self.eigenvalues / (self.eigenvalues + strength)).sum())

    def flow_gain(self, strength: float, t: float) -> Float[Tensor, " N"]:
        """The gain of gradient flow, ``g(σ) = (1 - e^{-μt})/μ`` with ``μ = σ + λ``.

        If μ is zero, g is t. At t = ∞, g is 1/μ, and 0 if μ is zero.
        """
        mu = self._mu(strength)
        if math.isinf(t):
            return torch.where(mu > 0, 1 / mu, 0.0)
        return torch.where(mu > 0, -torch.expm1(-mu * t) / mu, t)

    def descent_gain(self, strength: float, rate: float, steps: int) -> Float[Tensor, " N"]:
        """The gain of k steps of gradient descent at rate η, ``g(σ) = (1 - (1-ημ)^k)/μ`` with ``μ = σ + λ``.

        If μ is zero, g is ``ηk``.
        """
        mu = self._mu(strength)
        step = rate * mu
        decayed = torch.where(step < 1, -torch.expm1(steps * torch.log1p(-step)), 1 - (1 - step) ** steps)
        return torch.where(mu > 0, decayed / mu, rate * steps)

    def best_rate(self, strength: float) -> float:
        """The learning rate ``η = 2/(μ_1 + μ_N)`` with ``μ = σ + λ``, at which gradient descent converges fastest.

        Directions whose μ is zero never move, so they are left out. If no direction moves, η is 0.
        """
        mu = self._mu(strength)
        moving = mu[mu > 0]
        return float(2 / (moving[0] + moving[-1])) if len(moving) else 0.0

    def remainder(self, gain: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        """The share of the initial residual that is left along every eigenvector, ``φ(σ) = 1 - σ g(σ)``."""
        return 1 - self.eigenvalues * gain

    def _mu(self, strength: float) -> Float[Tensor, " N"]:
        """``μ = σ + λ``. If λ = 0, eigenvalues up to the tolerance count as zero.

        Raises:
            ValueError: λ is negative or not a number.
        """
        if not strength >= 0:
            raise ValueError(f"strength is {strength}, pass 0 or more")
        sigma = self.eigenvalues
        return sigma + strength if strength > 0 else torch.where(sigma > self.tolerance, sigma, 0.0)


@contextmanager
def _few_threads(size: int) -> Generator[None]:
    """Use one thread for small matrices. More threads gain little and, on shared cores, cost up to 30 times as much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if size <= 2048 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
