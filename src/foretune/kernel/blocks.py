"""Jacobian blocks of LoRA factors from the rows of a layer's calls, and the kernels they give (theory.md section 6).

For a layer with weight change ``sum_v s_v B_v A_v`` (several adapters v may be active on it), inputs ``a_t`` and
gradients ``g_t`` of the outputs, stack the factors to ``rows = [s_v A_v]`` (r, i) and ``columns = [s_v B_v]`` (o, r):

    J_B[n, k, o, r] = sum_t g[t, k, o] (rows a_t)[r]        J_A[n, k, r, i] = sum_t (columns' g)[t, k, r] a_t[i]

with t over the example's rows in all calls of the layer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foretune.tangents import Adapter, short_products

CHUNK_BYTES = 2**28  # of a Jacobian held at a time
WORK_BYTES = 2**26  # of rows converted at a time
STRIP = 256  # rows of a symmetric product at a time


@dataclass(frozen=True)
class Factors:
    """The LoRA factors of one layer, those of all its active adapters stacked, scaling included.

    Attributes:
        rows: The scaled A (r i).
        columns: The scaled B (o r).
    """

    rows: Float[Tensor, "r i"]
    columns: Float[Tensor, "o r"]

    @cached_property
    def has_columns(self) -> bool:
        """Whether some B is not zero; else the Jacobian in A is exactly zero."""
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
    """What one call of a layer left behind: its rows, example after example.

    Attributes:
        inputs: What entered (rows i).
        gradients: Of q coordinates of the outputs, at what came out (rows q o).
        counts: Rows of each stored example.
        examples: Which example each stored example is: results go to that place. The same for all calls of a layer.
        mixing: The outputs' gradients in the q coordinates, by example; None where the coordinates are the outputs.
    """

    inputs: Float[Tensor, "rows i"]
    gradients: Float[Tensor, "rows q o"]
    counts: Int[Tensor, " n"]
    examples: Int[Tensor, " n"]
    mixing: Float[Tensor, "n k q"] | None = None

    @property
    def num_outputs(self) -> int:
        """Outputs k of an example."""
        return self.gradients.shape[1] if self.mixing is None else self.mixing.shape[1]


def jacobian_b(calls: Sequence[CallRows], factors: Factors, *, dtype: torch.dtype) -> Float[Tensor, "n k o r"]:
    """Jacobian of every example's outputs in B, scaling included."""
    return next(_jacobians_b(calls, factors, dtype, calls[0].gradients.shape[2])).mT


def jacobian_a(calls: Sequence[CallRows], factors: Factors, *, dtype: torch.dtype) -> Float[Tensor, "n k r i"]:
    """Jacobian of every example's outputs in A, scaling included."""
    return next(_jacobians_a(calls, factors, dtype, calls[0].inputs.shape[1]))


def _jacobians_b(
    calls: Sequence[CallRows], factors: Factors, dtype: torch.dtype, step: int
) -> Iterator[Float[Tensor, "n k r x"]]:
    """The Jacobian in B, transposed, by parts of ``step`` layer outputs."""
    down = [_project(call.inputs, factors.rows.T, dtype).unsqueeze(1) for call in calls]  # (rows, 1, r)
    for part in _slices(calls[0].gradients.shape[2], step):
        yield _sum_outer(calls, down, [call.gradients[:, :, part] for call in calls])


def _jacobians_a(
    calls: Sequence[CallRows], factors: Factors, dtype: torch.dtype, step: int
) -> Iterator[Float[Tensor, "n k r x"]]:
    """The Jacobian in A by parts of ``step`` layer inputs."""
    up = [_project(call.gradients, factors.columns, dtype) for call in calls]  # (rows, q, r)
    for part in _slices(calls[0].inputs.shape[1], step):
        yield _sum_outer(calls, up, [call.inputs[:, part].unsqueeze(1) for call in calls])


def _slices(width: int, step: int) -> Iterator[slice]:
    return (slice(start, start + step) for start in range(0, width, step))


def _project(values: Tensor, factor: Float[Tensor, "w r"], dtype: torch.dtype) -> Tensor:
    """``values factor`` over the last axis, converted piece by piece."""
    factor = factor.to(values.device, dtype)
    rows = max(1, WORK_BYTES // (values[0].numel() * dtype.itemsize))
    return torch.cat([piece.to(dtype) @ factor for piece in values.split(rows)])


def _sum_outer(
    calls: Sequence[CallRows], shorts: Sequence[Tensor], longs: Sequence[Tensor]
) -> Float[Tensor, "n k r x"]:
    """``sum_t sum_q mixing[k, q] short[t, q] long[t, q]'`` of every example, over all calls.

    One of ``shorts`` (rows, q, r) and ``longs`` (rows, q, x) has all q coordinates, the other one for all. Long rows
    stay as they are stored, short ones are mixed; what remains is a batched product for each run of equally many rows.
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
    """Runs of examples with equally many rows: first, last + 1, the first one's row, rows of each."""
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
    """The kernels of a layer's factors: ``J J[columns]'`` with the names ``B`` and, where B is not zero, ``A``.

    Never more than ``chunk_bytes`` of a Jacobian are held: kernels add up over parts of the layer's outputs (or
    inputs), and so every gradient is read once.

    Args:
        calls: All calls of the layer.
        factors: Its LoRA factors.
        columns: Examples that make up the kernels' columns.
        dtype: In which products are taken.
        by_rank: Give one kernel a row of A (column of B), named ``B.0``, ``B.1``, ...
        chunk_bytes: Bound on the Jacobian in memory.
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
                products = [_gram(each.flatten(2), columns) for each in (jacobian.unbind(2) if by_rank else [jacobian])]
                kernels = [k.add_(p) for k, p in zip(kernels, products, strict=True)] if kernels else products
        for number, kernel in enumerate(kernels):
            yield (f"{letter}.{number}" if by_rank else letter), kernel


def _gram(jacobian: Float[Tensor, "n k p"], columns: Int[Tensor, " m"]) -> Float[Tensor, "N M"]:
    rows = jacobian.flatten(0, 1)
    if len(columns) == len(jacobian) and bool((columns == torch.arange(len(columns))).all()):
        return _symmetric(rows)
    return rows @ jacobian[columns.to(jacobian.device)].flatten(0, 1).T


def _symmetric(rows: Float[Tensor, "N p"]) -> Float[Tensor, "N N"]:
    """``rows rows'``: what is on and below the diagonal in strips, and above it the same numbers."""
    found = rows.new_empty(len(rows), len(rows))
    for start in range(0, len(rows), STRIP):
        stop = start + STRIP
        strip = rows[start:] @ rows[start:stop].T
        found[start:, start:stop] = strip
        found[start:stop, stop:] = strip[STRIP:].T
    return found
