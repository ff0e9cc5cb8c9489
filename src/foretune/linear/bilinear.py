"""What simulating a fine-tune spends its time on: bilinear forms of many rows, in the factors of adapters."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class Part(NamedTuple):
    """The factors of a layer in one of several sums, and what their form is multiplied by."""

    column: int
    scaling: float
    a: Float[Tensor, "r i"]
    b: Float[Tensor, "o r"]


class _Layer(NamedTuple):
    """Of one layer: its rows, and where its ranks lie among those of all."""

    inputs: Float[Tensor, "rows i"]
    gradients: Float[Tensor, "rows q o"]
    ranks: list[int]  # of each part
    place: slice


class Bilinear:
    """Several sums ``sum_m s_mk g_mq' B_mk A_mk a_m`` over layers m with equally many rows, one in each column k.

    Args:
        columns: How many.

    Attributes:
        size: Numbers that are held on the way to the sums.
    """

    def __init__(self, columns: int) -> None:
        self.columns, self.size = columns, 0
        self.layers: list[_Layer] = []
        self.parts: list[Part] = []

    def add(self, inputs: Float[Tensor, "rows i"], gradients: Float[Tensor, "rows q o"], parts: Sequence[Part]) -> None:
        """One more layer; of those with the very same inputs, one behind the other, A's products are taken together."""
        ranks, start = [len(part.a) for part in parts], self.layers[-1].place.stop if self.layers else 0
        self.layers.append(_Layer(inputs, gradients, ranks, slice(start, start + sum(ranks))))
        self.parts += parts
        self.size += gradients.shape[0] * gradients.shape[1] * sum(ranks)

    def sum(self) -> Float[Tensor, "rows q k"]:
        """The sums over the layers, for every row."""
        scale = torch.zeros(len(self.parts), self.columns, dtype=self.parts[0].a.dtype)
        columns, scalings, *_ = zip(*self.parts, strict=True)
        scale[torch.arange(len(scale)), torch.tensor(columns)] = torch.tensor(scalings, dtype=scale.dtype)
        scale = scale.repeat_interleave(torch.tensor([len(part.a) for part in self.parts]), 0)
        return _Sums.apply(self.layers, scale, *(factor for part in self.parts for factor in (part.a, part.b)))


class _Sums(torch.autograd.Function):
    """A ``Bilinear``'s sums: thin products of long matrices, each read once forward and once back.

    Products are taken in the rows' own type, sums over r, of all layers together, in the factors'.
    """

    @staticmethod
    def forward(
        ctx: Any, layers: list[_Layer], scale: Float[Tensor, "r k"], *factors: Tensor
    ) -> Float[Tensor, "rows q k"]:
        """The sums of bilinear forms of every row, where the factors are; these are A and B of each part in turn."""
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
        """Gradients of the factors."""
        kept, kind = ctx.up.dtype, ctx.layers[0].inputs.dtype
        outer = _out_of_columns(grads[0].to(ctx.scale.device), ctx.scale)  # (rows, q, r of all)
        weights, mixed = (outer * ctx.up).sum(1).to(kind), (outer * ctx.down.unsqueeze(1)).to(kind)
        of_a: list[Tensor] = []
        of_b: list[Tensor] = []
        for group in ctx.groups:
            place = slice(group[0].place.start, group[-1].place.stop)
            product = (weights[:, place].T @ group[0].inputs).to(kept)
            of_a += product.split([rank for layer in group for rank in layer.ranks])
        for layer in ctx.layers:
            left = mixed[..., layer.place].flatten(0, 1)  # (rows q, r)
            of_b += (left.T @ layer.gradients.flatten(0, 1)).to(kept).split(layer.ranks)
        found = [each for a, b in zip(of_a, of_b, strict=True) for each in (a, b.T)]
        return None, None, *_together(found, grads[0].device)


def _together(parts: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Tensors on a device, brought there in one piece where they are not."""
    if parts[0].device == device:
        return parts
    flat = torch.cat([part.flatten() for part in parts]).to(device)
    return [each.view(part.shape) for each, part in zip(flat.split([p.numel() for p in parts]), parts, strict=True)]


def _into_columns(values: Float[Tensor, "rows q r"], scale: Float[Tensor, "r k"]) -> Float[Tensor, "rows q k"]:
    """Scaled sums of the ranks that belong to each column; what is no number stays in its own."""
    found = values @ scale
    if bool(found.isfinite().all()):
        return found
    return torch.stack([values[..., own != 0] @ own[own != 0] for own in scale.T], 2)


def _out_of_columns(values: Float[Tensor, "rows q k"], scale: Float[Tensor, "r k"]) -> Float[Tensor, "rows q r"]:
    """Each rank's share of what its column has, likewise."""
    found = values @ scale.T
    if bool(found.isfinite().all()):
        return found
    return values[..., scale.abs().argmax(1)] * scale.sum(1)


def _groups(layers: list[_Layer]) -> list[list[_Layer]]:
    """The layers that follow each other with the same inputs."""
    groups: list[list[_Layer]] = []
    for layer in layers:
        if groups and layer.inputs is groups[-1][-1].inputs:
            groups[-1].append(layer)
        else:
            groups.append([layer])
    return groups
