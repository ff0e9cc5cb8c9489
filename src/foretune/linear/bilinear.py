"""What simulating a fine-tune spends its time on: bilinear forms of many rows, in the factors of adapters."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


class Bilinear:
    """Bilinear forms ``sum_m s_m g_mq' B_mk A_mk a`` of layers m with the same inputs a, for k pairs of factors."""

    def __init__(self, inputs: Float[Tensor, "rows i"]) -> None:
        self.inputs = inputs
        self.gradients: list[Float[Tensor, "rows q _o"]] = []
        self.scalings: list[float] = []
        self.factors: list[Tensor] = []

    def add(
        self, gradients: Float[Tensor, "rows q o"], scaling: float, a: Float[Tensor, "k r i"], b: Float[Tensor, "k o r"]
    ) -> None:
        """One more layer."""
        self.gradients.append(gradients)
        self.scalings.append(scaling)
        self.factors += [a, b]

    def sum(self) -> Float[Tensor, "rows q k"]:
        """The sum over the layers, for every row."""
        return _Sum.apply(self.inputs, self.gradients, self.scalings, *self.factors)


class _Sum(torch.autograd.Function):
    """A ``Bilinear``'s sum for many rows: thin products of long matrices, each read once forward and once back.

    Products are taken in the rows' own type, sums over r in the factors'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Float[Tensor, "rows i"],
        gradients: list[Float[Tensor, "rows q _o"]],
        scalings: list[float],
        *factors: Tensor,
    ) -> Float[Tensor, "rows q k"]:
        """The sum of bilinear forms of every row; factors are A and B of each layer in turn."""
        kept, count = factors[0].dtype, len(factors[0])
        wide = torch.cat([a.flatten(0, 1) for a in factors[::2]]).to(inputs.dtype)
        down = [  # (rows, 1, k, r) of each layer
            part.view(len(inputs), 1, count, -1)
            for part in (inputs @ wide.T).to(kept).split([a.shape[0] * a.shape[1] for a in factors[::2]], 1)
        ]
        up = [  # (rows, q, k, r)
            (g.flatten(0, 1) @ b.transpose(0, 1).flatten(1).to(g.dtype))
            .to(kept)
            .mul_(scaling)
            .view(*g.shape[:2], count, -1)
            for g, b, scaling in zip(gradients, factors[1::2], scalings, strict=True)
        ]
        ctx.inputs, ctx.gradients, ctx.scalings, ctx.down, ctx.up = inputs, gradients, scalings, down, up
        return torch.stack([(d * u).sum(3) for d, u in zip(down, up, strict=True)]).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the factors."""
        outer = grads[0].unsqueeze(3)  # (rows, q, k, 1)
        weights = torch.cat([(outer * up).sum(1).flatten(1) for up in ctx.up], 1).to(ctx.inputs.dtype)
        grad_a = (weights.T @ ctx.inputs).to(outer.dtype).split([up[0, 0].numel() for up in ctx.up])
        found: list[Tensor] = []
        for a, gradients, scaling, down in zip(grad_a, ctx.gradients, ctx.scalings, ctx.down, strict=True):
            count, rank = down.shape[2:]
            mixed = (scaling * outer * down).flatten(0, 1).flatten(1).to(gradients.dtype)  # (rows q, k r)
            b = (mixed.T @ gradients.flatten(0, 1)).to(outer.dtype)
            found += [a.view(count, rank, -1), b.view(count, rank, -1).transpose(1, 2)]
        return None, None, None, *found
