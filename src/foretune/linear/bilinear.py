"""What simulating a fine-tune spends its time on: bilinear forms of many rows, in the factors of adapters."""

from itertools import accumulate
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class _Layer(NamedTuple):
    """Of one layer: its rows, and what their forms are multiplied by."""

    inputs: Float[Tensor, "rows i"]
    gradients: Float[Tensor, "rows q o"]
    scaling: float


class Bilinear:
    """Bilinear forms ``sum_m s_m g_mq' B_mk A_mk a_m`` of layers m with equally many rows, for k pairs of factors.

    Attributes:
        size: Numbers that are held on the way to the sum.
    """

    def __init__(self) -> None:
        self.layers: list[_Layer] = []
        self.factors: list[Tensor] = []
        self.size = 0

    def add(
        self,
        inputs: Float[Tensor, "rows i"],
        gradients: Float[Tensor, "rows q o"],
        scaling: float,
        a: Float[Tensor, "k r i"],
        b: Float[Tensor, "k o r"],
    ) -> None:
        """One more layer; of those with the very same inputs, one behind the other, A's products are taken together."""
        self.layers.append(_Layer(inputs, gradients, scaling))
        self.factors += [a, b]
        self.size += gradients.shape[0] * gradients.shape[1] * a.shape[0] * a.shape[1]

    def sum(self) -> Float[Tensor, "rows q k"]:
        """The sum over the layers, for every row."""
        return _Sum.apply(self.layers, *self.factors)


class _Sum(torch.autograd.Function):
    """A ``Bilinear``'s sum: thin products of long matrices, each read once forward and once back.

    Products are taken in the rows' own type, sums over r, of all layers together, in the factors'.
    """

    @staticmethod
    def forward(ctx: Any, layers: list[_Layer], *factors: Tensor) -> Float[Tensor, "rows q k"]:
        """The sum of bilinear forms of every row; factors are A and B of each layer in turn."""
        count, (rows, directions, _) = len(factors[0]), layers[0].gradients.shape
        ranks = [a.shape[1] for a in factors[::2]]
        parts = [slice(stop - rank, stop) for stop, rank in zip(accumulate(ranks), ranks, strict=True)]
        groups = _groups(layers)
        scale = factors[0].new_tensor(
            [layer.scaling for layer, rank in zip(layers, ranks, strict=True) for _ in range(rank)]
        )
        down = factors[0].new_empty(rows, count, sum(ranks))
        up = factors[0].new_empty(rows, directions, count, sum(ranks))
        for group in groups:
            wide = torch.cat([factors[2 * m] for m in group], 1)  # (k, r of all, i)
            inputs = layers[group[0]].inputs
            product = inputs @ wide.flatten(0, 1).to(inputs.dtype).T
            down[..., parts[group[0]].start : parts[group[-1]].stop] = product.view(rows, count, -1)
        for m, (layer, part) in enumerate(zip(layers, parts, strict=True)):
            columns = factors[2 * m + 1].transpose(0, 1).flatten(1).to(layer.gradients.dtype)  # (o, k r)
            up[..., part] = (layer.gradients.flatten(0, 1) @ columns).view(rows, directions, count, -1)
        down.mul_(scale)
        ctx.layers, ctx.groups, ctx.parts, ctx.scale, ctx.down, ctx.up = layers, groups, parts, scale, down, up
        return (up * down.unsqueeze(1)).sum(3)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the factors."""
        layers, kept, kind = ctx.layers, ctx.up.dtype, ctx.layers[0].inputs.dtype
        rows, directions, count, _ = ctx.up.shape
        outer = grads[0].unsqueeze(3)  # (rows, q, k, 1)
        weights = (outer * ctx.up).sum(1).mul_(ctx.scale).to(kind)  # (rows, k, r of all)
        mixed = (outer * ctx.down.unsqueeze(1)).to(kind)  # (rows, q, k, r of all)
        found: list[Tensor] = []
        for group in ctx.groups:
            mine = [ctx.parts[m] for m in group]
            product = weights[..., mine[0].start : mine[-1].stop].flatten(1).T @ layers[group[0]].inputs
            several = product.to(kept).view(count, -1, product.shape[1]).split([p.stop - p.start for p in mine], 1)
            for m, part, grad_a in zip(group, mine, several, strict=True):
                left = mixed[..., part].reshape(rows * directions, -1)  # (rows q, k r)
                grad_b = (left.T @ layers[m].gradients.flatten(0, 1)).to(kept)
                found += [grad_a, grad_b.view(count, -1, grad_b.shape[1]).transpose(1, 2)]
        return None, *found


def _groups(layers: list[_Layer]) -> list[list[int]]:
    """Numbers of the layers that follow each other with the same inputs."""
    groups: list[list[int]] = []
    for number, layer in enumerate(layers):
        if groups and layer.inputs is layers[groups[-1][-1]].inputs:
            groups[-1].append(number)
        else:
            groups.append([number])
    return groups
