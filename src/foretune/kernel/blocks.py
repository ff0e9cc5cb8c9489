"""Jacobians of a model's outputs in the LoRA factors A and B of a layer, and the layer's kernels.

A Jacobian holds the derivative of every output with respect to every parameter. The kernel is the Jacobian times its
transpose. See docs/theory.md section 6.

LoRA changes a layer's weight by ``sum_v s_v B_v A_v``; the sum runs over the adapters v that are active on the layer.
``a_t`` is the layer's input for token t, and ``g_t`` is the gradient of the model's outputs at the layer's output for
that token. The factors are stacked to ``rows = [s_v A_v]`` (r, i) and ``columns = [s_v B_v]`` (o, r). Then:

    J_B[n, k, o, r] = sum_t g[t, k, o] (rows a_t)[r]        J_A[n, k, r, i] = sum_t (columns' g)[t, k, r] a_t[i]

where t runs over the rows (tokens) of the example in all calls of the layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foretune.tangents import Adapter, short_products

CHUNK_BYTES = 2**28  # the largest part of a Jacobian that is held in memory
WORK_BYTES = 2**26  # the most bytes of rows that are converted at once
STRIP = 256  # a symmetric product is computed in strips of this many rows


@dataclass(frozen=True)
class Factors:
    """The LoRA factors of one layer, with the factors of all its active adapters stacked.

    Attributes:
        rows: The factor A, multiplied by the scaling (r i).
        columns: The factor B, multiplied by the scaling (o r).
    """

    rows: Float[Tensor, "r i"]
    columns: Float[Tensor, "o r"]

    @cached_property
    def has_columns(self) -> bool:
        """Whether B has a non-zero entry. If it has none, the Jacobian in A is exactly zero."""
        return bool(self.columns.any())

    @staticmethod
    def by_layer(adapters: Sequence[Adapter]) -> "dict[str, Factors]":
        """The factors of every adapted layer."""
        layers: dict[str, list[Adapter]] = {}
        for adapter in adapters:
            layers.setdefault(adapter.layer, []).append(adapter)
        return {
            layer: Factors(
                torch.cat([x.scaling * x.a.detach() for x in several]),
                torch.cat([x.scaling * x.b.detach() for x in several], 1),
            )
            for layer, several in layers.items()
        }


@dataclass(frozen=True)
class CallRows:
    """The recorded rows of one call of a layer, example after example. A row belongs to one token.

    Attributes:
        inputs: Inputs of the layer (rows i).
        gradients: Gradients of q coordinates of the model's outputs at the layer's output (rows q o).
        counts: Number of rows of every stored example.
        examples: Index of every stored example in the data set. Results are put at this index. All calls of a layer
            have the same indices.
        mixing: Derivatives of the k outputs in the q coordinates, for every example. None means that the coordinates
            are the outputs themselves.
    """

    inputs: Float[Tensor, "rows i"]
    gradients: Float[Tensor, "rows q o"]
    counts: Int[Tensor, " n"]
    examples: Int[Tensor, " n"]
    mixing: Float[Tensor, "n k q"] | None = None

    @property
    def num_outputs(self) -> int:
        """Number of outputs of an example, k."""
        return self.gradients.shape[1] if self.mixing is None else self.mixing.shape[1]


def jacobian_b(calls: Sequence[CallRows], factors: Factors, *, dtype: torch.dtype) -> Float[Tensor, "n k o r"]:
    """The Jacobian of every example's outputs in B, multiplied by the scaling."""
    return next(_jacobians_b(calls, factors, dtype, calls[0].gradients.shape[2])).mT


def jacobian_a(calls: Sequence[CallRows], factors: Factors, *, dtype: torch.dtype) -> Float[Tensor, "n k r i"]:
    """The Jacobian of every example's outputs in A, multiplied by the scaling."""
    return next(_jacobians_a(calls, factors, dtype, calls[0].inputs.shape[1]))


def _jacobians_b(
    calls: Sequence[CallRows], factors: Factors, dtype: torch.dtype, step: int
) -> Iterator[Float[Tensor, "n k r x"]]:
    """Yield the transposed Jacobian in B, for ``step`` outputs of the layer at a time."""
    down = [_project(call.inputs, factors.rows.T, dtype).unsqueeze(1) for call in calls]  # (rows, 1, r)
    for part in _slices(calls[0].gradients.shape[2], step):
        yield _sum_outer(calls, down, [call.gradients[:, :, part] for call in calls])


def _jacobians_a(
    calls: Sequence[CallRows], factors: Factors, dtype: torch.dtype, step: int
) -> Iterator[Float[Tensor, "n k r x"]]:
    """Yield the Jacobian in A, for ``step`` inputs of the layer at a time."""
    up = [_project(call.gradients, factors.columns, dtype) for call in calls]  # (rows, q, r)
    for part in _slices(calls[0].inputs.shape[1], step):
        yield _sum_outer(calls, up, [call.inputs[:, part].unsqueeze(1) for call in calls])


def _slices(width: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, width, step))


def _project(values: Tensor, factor: Float[Tensor, "w r"], dtype: torch.dtype) -> Tensor:
    """``values @ factor`` over the last axis; values are converted to ``dtype`` piece by piece to save memory."""
    factor = factor.to(values.device, dtype)
    rows = max(1, WORK_BYTES // (values[0].numel() * dtype.itemsize))
    return torch.cat([piece.to(dtype) @ factor for piece in values.split(rows)])


def _sum_outer(
    calls: Sequence[CallRows], shorts: Sequence[Tensor], longs: Sequence[Tensor]
) -> Float[Tensor, "n k r x"]:
    """``sum_t sum_q mixing[k, q] short[t, q] long[t, q]'`` for every example, summed over all calls.

    One of ``shorts`` (rows, q, r) and ``longs`` (rows, q, x) has all q coordinates. The other has a single entry that
    counts for all coordinates. The mixing is applied to the short rows, because that is cheaper; the long rows stay as
    they are stored. Neighbouring examples with equally many rows are multiplied in one batched product.
    """
    dtype, coordinates = shorts[0].dtype, longs[0].shape[1]
    shape = len(calls[0].counts), calls[0].num_outputs, shorts[0].shape[2], longs[0].shape[2]
    total = torch.empty(shape, dtype=dtype, device=longs[0].device)
    for number, (call, short, long) in enumerate(zip(calls, shorts, longs, strict=True)):
        mixing = call.mixing
        if mixing is None:
            mixing = torch.eye(shape[1]).expand(shape[0], -1, -1)
        per_row = max(long[0].numel(), mixing[0].numel() * shape[2]) * dtype.itemsize
        for first, last, start, length in _runs(call.counts, WORK_BYTES // per_row):
            rows, some = slice(start, start + (last - first) * length), (last - first, length)
            mixed = mixing[first:last, None].to(short).mT.unsqueeze(4) * short[rows].unflatten(0, some).unsqueeze(3)
            if coordinates == 1:
                mixed = mixed.sum(2)  # (m, t, k, r), else (m, t, q, k, r)
            narrow, wide = mixed.flatten(-2).flatten(1, -2), long[rows].to(dtype).view(last - first, -1, shape[3])
            total[first:last].flatten(1, 2).baddbmm_(narrow.mT, wide, beta=min(number, 1))
    examples = calls[0].examples.to(total.device)
    return total if bool((examples.diff() == 1).all()) else total[examples.argsort()]


def _runs(counts: Int[Tensor, " n"], max_rows: int) -> Iterator[tuple[int, int, int, int]]:
    """Split the examples into runs of neighbours that have equally many rows.

    Yields the first example, the last example + 1, the first row, and the number of rows per example.
    """
    values, lengths = torch.unique_consecutive(counts, return_counts=True)
    example = row = 0
    for value, length in zip(values.tolist(), lengths.tolist(), strict=True):
        step, end = max(1, max_rows // max(1, value)), example + length
        while example < end:
            last = min(example + step, end)
            yield example, last, row, value
            row += (last - example) * value
            example = last


def layer_kernels(
    calls: Sequence[CallRows],
    factors: Factors,
    columns: Int[Tensor, " m"],
    *,
    dtype: torch.dtype,
    by_rank: bool = False,
    chunk_bytes: int = CHUNK_BYTES,
) -> Iterator[tuple[str, Float[Tensor, "N M"]]]:
    """Yield the name and the kernel ``J J[columns]'`` of every LoRA factor of a layer.

    The names are ``B`` and, if B is not zero, ``A``. The Jacobian is computed in parts of at most ``chunk_bytes``; the
    kernel is the sum over these parts, so every gradient is read only once.

    Args:
        calls: All calls of the layer.
        factors: The layer's LoRA factors.
        columns: Indices of the examples that make up the kernels' columns.
        dtype: The type in which products are computed.
        by_rank: Whether to give a kernel for every column of B (named ``B.0``, ``B.1``, ...) and every row of A.
        chunk_bytes: The most memory that a part of the Jacobian takes, in bytes.
    """
    num_rows = len(calls[0].counts) * calls[0].num_outputs
    step = max(1, chunk_bytes // (num_rows * len(factors.rows) * dtype.itemsize))
    parts = [("B", _jacobians_b(calls, factors, dtype, step))]
    if factors.has_columns:
        parts.append(("A", _jacobians_a(calls, factors, dtype, step)))
    for letter, jacobians in parts:
        kernels: list[Tensor] = []
        with short_products(calls[0].gradients.dtype):
            for jacobian in jacobians:
                slices = jacobian.unbind(2) if by_rank else [jacobian]
                products = [_gram(piece.flatten(2), columns) for piece in slices]
                kernels = [k.add_(p) for k, p in zip(kernels, products, strict=True)] if kernels else products
        for number, kernel in enumerate(kernels):
            yield (f"{letter}.{number}" if by_rank else letter), kernel


def _gram(jacobian: Float[Tensor, "n k p"], columns: Int[Tensor, " m"]) -> Float[Tensor, "N M"]:
    rows = jacobian.flatten(0, 1)
    if len(columns) == len(jacobian) and bool((columns == torch.arange(len(columns))).all()):
        return _symmetric(rows)
    return rows @ jacobian[columns.to(jacobian.device)].flatten(0, 1).T


def _symmetric(rows: Float[Tensor, "N p"]) -> Float[Tensor, "N N"]:
    """``rows @ rows.T``: only the lower triangle is computed, in strips, and then mirrored."""
    product = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), STRIP):
        stop = start + STRIP
        strip = rows[start:] @ rows[start:stop].T
        product[start:, start:stop] = strip
        product[start:stop, stop:] = strip[STRIP:].T
    return product
