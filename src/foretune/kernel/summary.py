"""Numbers that describe a kernel before any training (docs/theory.md section 4)."""

import math
from typing import TypedDict

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.kernel.bounds import risk_bounds
from foretune.kernel.kernel import Kernel
from foretune.kernel.spectrum import Spectrum

MAX_EIGENVALUES = 512  # a summary holds at most this many


class Summary(TypedDict):
    """The numbers of a kernel that result files hold."""

    examples: int  # number of training examples
    condition_number: float
    condition_number_std: float
    regularised_condition_number: float
    trace: float
    effective_dimension: float
    alignment: float
    spectrum: list[float]
    strength: float


class RiskBounds(TypedDict):
    """Squared-loss risks ``½ ‖f(x) - y‖²`` of the linearised model in centred outputs, per training example.

    ``lower`` and ``upper`` are the bounds of docs/theory.md P5 for gradient descent without a penalty at its best
    learning rate. The best and the worst labels with the same initial residual reach them. They do not bound a run with
    another loss or optimiser.
    """

    steps: int  # steps of gradient descent
    initial: float  # risk before training
    lower: float  # lower bound after the steps
    upper: float  # upper bound after the steps
    ridge: float  # risk of ridge regression at the summary's strength, without its penalty


def alignment(kernel: Kernel) -> float:
    r"""Measure how well the kernel fits the targets: the centred kernel-target alignment, between 0 and 1.

    .. math:: A = \frac{y^\top H K H y}{\lVert H K H\rVert_F\,\lVert H y\rVert^2},\qquad
              H = (I_n - \tfrac1n 1 1^\top)\otimes I_k

    where y are the targets of the training examples in centred coordinates. It is the cosine between HKH and
    ``(Hy)(Hy)'`` (Cortes, Mohri, Rostamizadeh 2012). H subtracts the mean over the examples from every output, because
    the head's bias fits that mean. The alignment is 0 if the targets or the kernel do not vary.
    """
    n, k = kernel.y_train.shape
    blocks = kernel.k_train_train.reshape(n, k, n, k)
    blocks = blocks - blocks.mean(0, keepdim=True)
    centred = (blocks - blocks.mean(2, keepdim=True)).reshape(n * k, n * k)
    y = (kernel.y_train - kernel.y_train.mean(0)).flatten()
    scale = float(centred.norm() * y.square().sum())
    return float(y @ centred @ y) / scale if scale > 0 else 0.0


def subsampled_condition_number(
    kernel: Kernel, fraction: float = 0.5, draws: int = 8, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of κ over random subsets of the training examples.

    They show how much κ depends on the choice of examples. Subsets are drawn without replacement, and the outputs of an
    example stay together. If the kernel of a subset is singular, the mean is ∞ and the standard deviation NaN.

    Args:
        kernel: The kernel.
        fraction: Share of the training examples in a subset. A subset has at least 2 examples.
        draws: Number of subsets, at least 2.
        seed: Seed of the random subsets.

    Raises:
        ValueError: The fraction is not above 0 and at most 1, or there are fewer than 2 draws.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction is {fraction}, pass a number above 0 and at most 1")
    if draws < 2:
        raise ValueError(f"draws is {draws}, pass 2 or more")
    n, k = kernel.y_train.shape
    size = min(n, max(2, round(fraction * n)))
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(draws):
        chosen = torch.randperm(n, generator=generator)[:size].sort().values
        entries = (chosen[:, None] * k + torch.arange(k)).flatten()
        part = kernel.k_train_train[entries[:, None], entries]
        values.append(Spectrum.of(part, precision=kernel.dtype, vectors=False).condition_number)
    if math.inf in values:
        return math.inf, math.nan
    result = torch.tensor(values, dtype=torch.float64)
    return float(result.mean()), float(result.std())


def summary(kernel: Kernel, strength: float) -> Summary:
    """Compute the numbers that describe a kernel (docs/theory.md section 4).

    Args:
        kernel: The kernel.
        strength: λ, the ridge strength, in the sum convention.
    """
    spectrum = kernel.spectrum()
    return Summary(
        examples=kernel.num_train,
        condition_number=spectrum.condition_number,
        condition_number_std=subsampled_condition_number(kernel)[1],
        regularised_condition_number=spectrum.regularised_condition_number(strength),
        trace=spectrum.trace,
        effective_dimension=spectrum.effective_dimension(strength),
        alignment=alignment(kernel),
        spectrum=spectrum.eigenvalues[:MAX_EIGENVALUES].tolist(),
        strength=strength,
    )


def risk_summary(
    spectrum: Spectrum, coefficients: Float[Tensor, " N"], *, num_train: int, strength: float, steps: int
) -> RiskBounds:
    """Bound the training risk after some steps of gradient descent, and compute that of ridge regression.

    The bounds are those of docs/theory.md P5.

    Args:
        spectrum: The spectrum of the training kernel. Its eigenvectors are not used.
        coefficients: ``c = V' r0``, the initial residual in the basis of the eigenvectors V.
        num_train: Number of training examples n. Risks are divided by n.
        strength: λ of ridge regression, in the sum convention.
        steps: Number of steps of gradient descent.
    """
    descent = spectrum.remainder(spectrum.descent_gain(0.0, spectrum.best_rate(0.0), steps))
    lower, upper = risk_bounds(descent, float(coefficients.norm()))
    left = coefficients * spectrum.remainder(spectrum.flow_gain(strength, math.inf))
    initial, ridge = (float(residual.square().sum()) / 2 for residual in (coefficients, left))
    return RiskBounds(
        steps=steps,
        initial=initial / num_train,
        lower=lower / num_train,
        upper=upper / num_train,
        ridge=ridge / num_train,
    )
