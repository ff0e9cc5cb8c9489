"""The factors of adapted layers at one moment, and how far they have moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Factors = Mapping[str, tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]]  # A and B of layers


@dataclass(frozen=True)
class Weights:
    """The factors of adapted layers at one moment.

    Attributes:
        now: Of every layer.
        start: Where their change counts from, of the layers where that is not zero.
        scalings: Of every layer.
        dropouts: Probabilities with which inputs of layers are dropped; those that are not named drop none.
    """

    now: Factors
    start: Factors
    scalings: Mapping[str, float]
    dropouts: Mapping[str, float] = field(default_factory=dict)


def change_norms(several: Sequence[Weights]) -> list[dict[str, Float[Tensor, ""]]]:
    """Frobenius norm of ``s (B A - B0 A0)`` of every layer, for each of several weights.

    In float64 where layers do not start from zero: there it is a small difference of large products.
    """
    alike: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for number, weights in enumerate(several):
        for layer, (a, b) in weights.now.items():
            alike.setdefault((a.shape, b.shape, layer in weights.start), []).append((number, layer))
    found: list[dict[str, Tensor]] = [{} for _ in several]
    with torch.no_grad():
        for (*_, moved), layers in alike.items():
            a, b = (torch.stack([several[number].now[layer][side] for number, layer in layers]) for side in (0, 1))
            if moved:
                first = [several[number].start[layer] for number, layer in layers]
                a = torch.cat([a, torch.stack([each for each, _ in first])], 1).double()
                b = torch.cat([b, -torch.stack([each for _, each in first])], 2).double()
            squares = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp_min(0)
            scalings = torch.tensor([several[number].scalings[layer] for number, layer in layers])
            for (number, layer), norm in zip(layers, (scalings.to(squares) * squares.sqrt()).unbind(), strict=True):
                found[number][layer] = norm
    return found
