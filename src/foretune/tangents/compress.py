r"""Fewer rows of an example: a layer sees it through one matrix, whose rank is small.

Whatever adapter changes a layer's weight by ``dW``, an example's features change by ``<G, dW>`` with the one matrix
``G = sum_t g_t a_t'`` over its tokens t: gradients g and inputs a are needed only as a factorisation of it. Texts of
twenty-six tokens have most of ``|G|^2`` in a few directions (``docs/log.md``), longer ones in not many more. Simulated
runs do with fewer of them than the small eigenvalues of a kernel: rows are kept in two parts, and runs read the first.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOLERANCE = 0.02  # share of |G|^2 that may be left out, on average over examples
SIMULATED = 0.1  # share that simulated runs may leave out
MORE = 4  # random inputs beyond the rank
SMALL = 32  # rows of matrices of which a GPU decomposes many at once
RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)  # few, so that many layers have rows alike


class Ranks(NamedTuple):
    """Rows of every example that are kept of a layer.

    Attributes:
        main: Those that hold most, which simulated runs read.
        rest: Those beyond them, which kernels read too.
    """

    main: int
    rest: int


def low_rank(
    inputs: Float[Tensor, "b t i"], gradients: Float[Tensor, "b t p"], rank: int
) -> tuple[Float[Tensor, "b r i"], Float[Tensor, "b r p"]]:
    """Rows whose outer products have nearly the same sum ``G = sum_t g_t a_t'``: the projection of G on few inputs.

    One step of subspace iteration from random inputs, the same for every example, and the best of what it finds. Rows
    of zeros change nothing; with a rank of at least that of G the sum is exact. New inputs are orthonormal,
    new gradients orthogonal, the longest last.
    """
    generator = torch.Generator().manual_seed(0)
    more = min(rank + MORE, inputs.shape[2])
    start = torch.randn(inputs.shape[2], more, generator=generator).to(inputs)
    few = inputs.shape[1] <= 3 * more
    gram = gradients @ gradients.mT if few else None  # (b t t): gradients are the longest rows, seldom to be read

    def across(columns: Float[Tensor, "b t m"]) -> Float[Tensor, "b t m"]:
        return gradients @ (columns.mT @ gradients).mT if gram is None else gram @ columns

    basis = _orthonormal(inputs.mT @ across(inputs @ start))
    seen = inputs @ basis
    _, turn = _eigh(_single(seen.mT @ across(seen)))
    turn = turn[:, :, more - rank :].to(basis.dtype)
    return (basis @ turn).mT, (seen @ turn).mT @ gradients


def _orthonormal(columns: Float[Tensor, "b i r"]) -> Float[Tensor, "b i r"]:
    """An orthonormal basis of the columns; a GPU would factor them matrix by matrix, and takes ``by_gram``."""
    if not columns.is_cuda:
        return torch.linalg.qr(_single(columns))[0].to(columns.dtype)
    return by_gram(columns.double()).to(columns.dtype)


def by_gram(columns: Float[Tensor, "b i r"]) -> Float[Tensor, "b i r"]:
    """An orthonormal basis of the columns' span but its directions of less than 1e-5 of the longest: zeros instead."""
    squares, turn = _eigh(columns.mT @ columns)
    inverse = torch.where(squares > 1e-10 * squares[:, -1:], squares.clamp_min(1e-300).rsqrt(), 0)
    return columns @ (turn * inverse[:, None])


def _eigh(matrices: Float[Tensor, "b r r"]) -> tuple[Float[Tensor, "b r"], Float[Tensor, "b r r"]]:
    """Eigenvalues and eigenvectors; a GPU is fast at many small ones only."""
    place = matrices.device if matrices.shape[1] <= SMALL else "cpu"
    values, vectors = torch.linalg.eigh(matrices.to(place))
    return values.to(matrices), vectors.to(matrices)


def _single(values: Float[Tensor, "..."]) -> Float[Tensor, "..."]:
    """In single precision at least, as decompositions need it."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def lost(inputs: Float[Tensor, "b t i"], gradients: Float[Tensor, "b t p"], most: int) -> Float[Tensor, " most"]:
    """Mean share of ``|G|^2`` that the best projection on 1, 2, ... ``most`` inputs leaves out."""
    inputs, gradients = _single(inputs), _single(gradients)
    whole = ((inputs @ inputs.mT) * (gradients @ gradients.mT)).sum((1, 2))
    rows = low_rank(inputs, gradients, most)[1]
    kept = rows.square().sum(2).flip(1).cumsum(1)
    there = whole > 0
    return (1 - kept[there] / whole[there, None]).mean(0) if bool(there.any()) else torch.zeros(kept.shape[1])


def ranks_for(
    inputs: Float[Tensor, "b t i"], gradients: Float[Tensor, "b t p"], counts: Int[Tensor, " b"], tolerance: float
) -> Ranks | None:
    """As few rows as lose at most the tolerance, and as few of them as lose at most ``SIMULATED``.

    Both numbers are of ``RANKS``, the largest if all lose more, and no more than an example has tokens if these do.
    None where simulated runs would not read half as many rows as there are tokens: compressing takes a tenth to a fifth
    of the time that the passes take.
    """
    shares, tokens = lost(inputs, gradients, min(*inputs.shape[1:], RANKS[-1])).tolist(), float(counts.float().mean())

    def smallest(most: float) -> int:
        enough = next((number for number, share in enumerate(shares, 1) if share <= most), len(shares))
        return min(next((rank for rank in RANKS if rank >= enough), RANKS[-1]), max(enough, int(tokens)))

    main, whole = smallest(max(tolerance, SIMULATED)), smallest(tolerance)
    return Ranks(main, whole - main) if 2 * main <= min(inputs.shape[2], tokens) else None


def padded(rows: Float[Tensor, "rows w"], counts: list[int]) -> Float[Tensor, "b t w"]:
    """Rows of examples that lie one behind the other, with zeros behind those of shorter ones."""
    return torch.nn.utils.rnn.pad_sequence(rows.split(counts), batch_first=True)
