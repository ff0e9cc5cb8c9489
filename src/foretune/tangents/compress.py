"""Compression of the rows of an example to a low rank.

A row is the input a_t of a layer for token t, or the gradient g_t at its output. If an adapter changes the layer's
weight by ``dW``, the example's features change by ``<G, dW>`` with ``G = sum_t g_t a_t'``. Only this sum matters, so
fewer rows with nearly the same sum can replace the rows of all tokens. Texts of 26 tokens have most of ``|G|^2`` in a
few directions (``docs/log.md``), and longer texts need few more.

Rows are stored in two parts. Simulated runs read only the first part. Kernels read both, because their small
eigenvalues need more rows.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOLERANCE = 0.02  # share of |G|^2 that compression may lose, on average over examples
SIMULATED_TOLERANCE = 0.1  # share that the rows for simulated runs may lose
OVERSAMPLING = 4  # random inputs beyond the rank
MAX_GPU_ROWS = 32  # largest matrices that a GPU decomposes in batches
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # few values, so that many layers have equally many rows


class Ranks(NamedTuple):
    """The number of rows per example that are stored for a layer.

    Attributes:
        main: Rows of the first part, which simulated runs and kernels read.
        rest: Rows of the second part, which only kernels read.
    """

    main: int
    rest: int


def low_rank(
    inputs: Float[Tensor, "b t i"], gradients: Float[Tensor, "b t p"], rank: int
) -> tuple[Float[Tensor, "b r i"], Float[Tensor, "b r p"]]:
    """Replace the rows of every example by ``rank`` rows with nearly the same sum ``G = sum_t g_t a_t'``.

    The new rows are a projection of G. One step of subspace iteration starts from random inputs, which are the same
    for all examples, and the best ``rank`` directions of its result are kept. The sum is exact if G has at most this
    rank. Rows of zeros, such as padding, change nothing.

    Args:
        inputs: Inputs of the layer.
        gradients: Gradients at its output. Their last axis may hold several layers and directions.
        rank: Number of new rows.

    Returns:
        Orthonormal inputs, and orthogonal gradients in order of increasing norm.
    """
    generator = torch.Generator().manual_seed(0)
    width = min(rank + OVERSAMPLING, inputs.shape[2])
    start = torch.randn(inputs.shape[2], width, generator=generator).to(inputs)
    few_tokens = inputs.shape[1] <= 3 * width
    gram = gradients @ gradients.mT if few_tokens else None  # (b t t), so that the long gradients are read less often

    def times_gram(columns: Float[Tensor, "b t m"]) -> Float[Tensor, "b t m"]:
        return gradients @ (columns.mT @ gradients).mT if gram is None else gram @ columns

    basis = _orthonormal(inputs.mT @ times_gram(inputs @ start))
    projected = inputs @ basis
    _, rotation = _eigh(_at_least_float32(projected.mT @ times_gram(projected)))
    rotation = rotation[:, :, width - rank :].to(basis.dtype)
    return (basis @ rotation).mT, (projected @ rotation).mT @ gradients


def _orthonormal(columns: Float[Tensor, "b i r"]) -> Float[Tensor, "b i r"]:
    """An orthonormal basis of the columns. A GPU factors one matrix at a time, so it uses ``by_gram`` instead."""
    if not columns.is_cuda:
        return torch.linalg.qr(_at_least_float32(columns))[0].to(columns.dtype)
    return by_gram(columns.double()).to(columns.dtype)


def by_gram(columns: Float[Tensor, "b i r"]) -> Float[Tensor, "b i r"]:
    """An orthonormal basis of the columns' span, from the eigenvectors of their Gram matrix.

    Directions with a singular value below 1e-5 of the largest one are replaced by zeros.
    """
    squares, rotation = _eigh(columns.mT @ columns)
    inverse = torch.where(squares > 1e-10 * squares[:, -1:], squares.clamp_min(1e-300).rsqrt(), 0)
    return columns @ (rotation * inverse[:, None])


def _eigh(matrices: Float[Tensor, "b r r"]) -> tuple[Float[Tensor, "b r"], Float[Tensor, "b r r"]]:
    """Eigenvalues and eigenvectors. Large matrices go to the CPU, because a GPU is fast only at many small ones."""
    device = matrices.device if matrices.shape[1] <= MAX_GPU_ROWS else "cpu"
    values, vectors = torch.linalg.eigh(matrices.to(device))
    return values.to(matrices), vectors.to(matrices)


def _at_least_float32(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """Convert half precision to float32, because decompositions do not support it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def lost_shares(
    inputs: Float[Tensor, "b t i"], gradients: Float[Tensor, "b t p"], max_rank: int
) -> Float[Tensor, " max_rank"]:
    """The share of ``|G|^2`` that compression to 1, 2, ... ``max_rank`` rows loses, averaged over examples."""
    inputs, gradients = _at_least_float32(inputs), _at_least_float32(gradients)
    total = ((inputs @ inputs.mT) * (gradients @ gradients.mT)).sum((1, 2))
    rows = low_rank(inputs, gradients, max_rank)[1]
    retained = rows.square().sum(2).flip(1).cumsum(1)
    nonzero = total > 0
    if not bool(nonzero.any()):
        return torch.zeros(retained.shape[1])
    return (1 - retained[nonzero] / total[nonzero, None]).mean(0)


def ranks_for(
    inputs: Float[Tensor, "b t i"], gradients: Float[Tensor, "b t p"], counts: Int[Tensor, " b"], tolerance: float
) -> Ranks | None:
    """Choose the smallest numbers of rows that keep the tolerances.

    The first part may lose ``SIMULATED_TOLERANCE``, or ``tolerance`` if that is larger; both parts together may lose
    ``tolerance``. The numbers are rounded up to ``RANKS``, but not beyond the mean number of tokens if that many rows
    suffice. If no rank keeps a tolerance, the largest is taken.

    Args:
        inputs: Inputs of a layer, padded with zeros.
        gradients: Gradients at the outputs of all layers with these inputs, padded with zeros.
        counts: Number of tokens of every example.
        tolerance: Share of ``|G|^2`` that may be lost, on average over examples.

    Returns:
        The numbers of rows. None if simulated runs would read more than half as many rows as there are tokens or input
        features: compression takes 10 to 20% of the time of the passes, and would not pay.
    """
    shares = lost_shares(inputs, gradients, min(*inputs.shape[1:], RANKS[-1])).tolist()
    tokens = float(counts.float().mean())

    def smallest(max_share: float) -> int:
        rank = next((number for number, share in enumerate(shares, 1) if share <= max_share), len(shares))
        return min(next((rounded for rounded in RANKS if rounded >= rank), RANKS[-1]), max(rank, int(tokens)))

    main, total = smallest(max(tolerance, SIMULATED_TOLERANCE)), smallest(tolerance)
    return Ranks(main, total - main) if 2 * main <= min(inputs.shape[2], tokens) else None


def padded(rows: Float[Tensor, "rows w"], counts: list[int]) -> Float[Tensor, "b t w"]:
    """Split consecutive rows into examples, and pad shorter examples with zeros."""
    return torch.nn.utils.rnn.pad_sequence(rows.split(counts), batch_first=True)
