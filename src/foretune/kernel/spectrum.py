"""The eigenvalues of an NTK (theory.md section 4)."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
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


@contextmanager
def _few_threads(size: int) -> Generator[None]:
    """One thread for small matrices: more gain little and, where cores are shared, cost up to 30 times as much."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if size <= 2048 else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
