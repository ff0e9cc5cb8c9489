"""Sums of bilinear forms ``g' B A a`` over many rows, which take most of the time of a simulated fine-tune.

A and B are the factors of a LoRA adapter, a is a row of a layer's inputs, g a row of gradients at its outputs.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Part(NamedTuple):
    """The factors of one layer's form, its scaling, and the column of the sum to which the form belongs."""

    column: int
    scaling: float
    a: Float[Tensor, "r i"]
    b: Float[Tensor, "o r"]


class _Layer(NamedTuple):
    """The rows of one layer, and where its ranks lie among the ranks of all layers."""

    inputs: Float[Tensor, "rows i"]
    gradients: Float[Tensor, "rows q o"]
    ranks: list[int]  # the rank of every part
    place: slice


class Bilinear:
    """Computes ``sum_m s_mk g_mq' B_mk A_mk a_m`` over layers m, for several columns k.

    All layers must have equally many rows. A column belongs to one set of adapters.

    Args:
        columns: Number of columns.

    Attributes:
        size: How many numbers are held in memory to compute the sums.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.size = columns, 0
        self.layers: list[_Layer] = []
        self.parts: list[Part] = []

    def add(self, inputs: Float[Tensor, "rows i"], gradients: Float[Tensor, "rows q o"], parts: Sequence[Part]) -> None:
        """Add a layer.

        If consecutive layers share the same input tensor, their products with A are computed together.
        """
        ranks, start = [len(part.a) for part in parts], self.layers[-1].place.stop if self.layers else 0
        self.layers.append(_Layer(inputs, gradients, ranks, slice(start, start + sum(ranks))))
        self.parts += parts
        self.size += gradients.shape[0] * gradients.shape[1] * sum(ranks)

    def sum(self) -> Float[Tensor, "rows q k"]:
        """Compute the sums over the layers, for every row."""
        scale = torch.zeros(len(self.parts), self.columns, dtype=self.parts[0].a.dtype)
        columns, scalings, *_ = zip(*self.parts, strict=True)
        scale[torch.arange(len(scale)), torch.tensor(columns)] = torch.tensor(scalings, dtype=scale.dtype)
        scale = scale.repeat_interleave(torch.tensor([len(part.a) for part in self.parts]), 0)
        return _Sums.apply(self.layers, scale, *(factor for part in self.parts for factor in (part.a, part.b)))


class _Sums(torch.autograd.Function):
    """The sums of a ``Bilinear``. Every matrix of rows is read once in the forward and once in the backward pass.

    Products with rows are computed in the type of the rows. Sums over the ranks r of all layers are computed in the
    type of the factors.
    """

    @staticmethod
    def forward(
        ctx: Any, layers: list[_Layer], scale: Float[Tensor, "r k"], *factors: Tensor
    ) -> Float[Tensor, "rows q k"]:
        """Compute the sums for every row, on the factors' device. ``factors`` are A and B of the parts, alternating."""
        rows, directions, _ = layers[0].gradients.shape
        home, device = scale.device, layers[0].inputs.device
        scale, moved = scale.to(device), _together(factors, device)
        first, second, groups = list(moved[::2]), list(moved[1::2]), _groups(layers)
        down, up = scale.new_empty(rows, len(scale)), scale.new_empty(rows, directions, len(scale))
        for group in groups:
            inputs, count = group[0].inputs, sum(len(layer.ranks) for layer in group)
            wide, first = torch.cat(first[:count]), first[count:]  # (r of all, i)
            down[:, group[0].place.start : group[-1].place.stop] = inputs @ wide.to(inputs.dtype).T
        for layer in layers:
            columns, second = torch.cat(second[: len(layer.ranks)], 1), second[len(layer.ranks) :]  # (o, r)
            up[..., layer.place] = layer.gradients @ columns.to(layer.gradients.dtype)
        ctx.layers, ctx.groups, ctx.scale, ctx.down, ctx.up = layers, groups, scale, down, up
        return _into_columns(up * down.unsqueeze(1), scale).to(home)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Compute the gradients of the factors."""
        factor_dtype, row_dtype = ctx.up.dtype, ctx.layers[0].inputs.dtype
        outer = _out_of_columns(grads[0].to(ctx.scale.device), ctx.scale)  # (rows, q, r of all)
        weights, mixed = (outer * ctx.up).sum(1).to(row_dtype), (outer * ctx.down.unsqueeze(1)).to(row_dtype)
        of_a: list[Tensor] = []
        of_b: list[Tensor] = []
        for group in ctx.groups:
            place = slice(group[0].place.start, group[-1].place.stop)
            product = (weights[:, place].T @ group[0].inputs).to(factor_dtype)
            of_a += product.split([rank for layer in group for rank in layer.ranks])
        for layer in ctx.layers:
            left = mixed[..., layer.place].flatten(0, 1)  # (rows q, r)
            of_b += (left.T @ layer.gradients.flatten(0, 1)).to(factor_dtype).split(layer.ranks)
        gradients = [gradient for a, b in zip(of_a, of_b, strict=True) for gradient in (a, b.T)]
        return None, None, *_together(gradients, grads[0].device)


def _together(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Move tensors to a device in one transfer."""
    if parts[0].device == device:
        return parts
    flat = torch.cat([part.flatten() for part in parts]).to(device)
    return [piece.view(part.shape) for piece, part in zip(flat.split([p.numel() for p in parts]), parts, strict=True)]


def _into_columns(values: Float[Tensor, "rows q r"], scale: Float[Tensor, "r k"]) -> Float[Tensor, "rows q k"]:
    """Scaled sums over the ranks of every column. NaN and ∞ affect only their own column."""
    sums = values @ scale
    if bool(sums.isfinite().all()):
        return sums
    return torch.stack([values[..., own != 0] @ own[own != 0] for own in scale.T], 2)


def _out_of_columns(values: Float[Tensor, "rows q k"], scale: Float[Tensor, "r k"]) -> Float[Tensor, "rows q r"]:
    """The transpose of ``_into_columns``: a rank gets the scaled value of its column, and only its NaN and ∞."""
    spread = values @ scale.T
    if bool(spread.isfinite().all()):
        return spread
    return values[..., scale.abs().argmax(1)] * scale.sum(1)


def _groups(layers: list[_Layer]) -> list[list[_Layer]]:
    """Group consecutive layers that share the same input tensor."""
    groups: list[list[_Layer]] = []
    for layer in layers:
        if groups and layer.inputs is groups[-1][-1].inputs:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups
