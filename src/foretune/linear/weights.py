"""The LoRA factors of adapted layers at one moment of a run, and how far the layers' weights have moved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

Factors = Mapping[str, tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]]  # A and B by layer


@dataclass(frozen=True)
class Weights:
    """The factors of adapted layers at one moment of a run.

    Attributes:
        now: The current factors of every layer.
        start: The factors from which the change is counted. Layers whose B was zero are left out.
        scalings: The scaling of every layer.
        dropouts: The probability with which inputs of a layer are dropped. Other layers have no dropout.
    """

    now: Factors
    start: Factors
    scalings: Mapping[str, float]
    dropouts: Mapping[str, float] = field(default_factory=dict)


def change_norms(several: Sequence[Weights]) -> list[dict[str, Float[Tensor, ""]]]:
    """The Frobenius norm of ``s (B A - B0 A0)`` of every layer, for several sets of weights.

    If a layer's B0 is not zero, the norm is a small difference of large products, so it is computed in float64.
    """
    alike: dict[tuple[object, ...], list[tuple[int, str]]] = {}
    for number, weights in enumerate(several):
        for layer, (a, b) in weights.now.items():
            alike.setdefault((a.shape, b.shape, layer in weights.start), []).append((number, layer))
    norms: list[dict[str, Tensor]] = [{} for _ in several]
    with torch.no_grad():
        for (*_, moved), layers in alike.items():
            a, b = (torch.stack([several[number].now[layer][side] for number, layer in layers]) for side in (0, 1))
            if moved:
                first = [several[number].start[layer] for number, layer in layers]
                a = torch.cat([a, torch.stack([a0 for a0, _ in first])], 1).double()
                b = torch.cat([b, -torch.stack([b0 for _, b0 in first])], 2).double()
            squares = ((b.mT @ b) * (a @ a.mT)).sum((1, 2)).clamp_min(0)
            scalings = torch.tensor([several[number].scalings[layer] for number, layer in layers])
            for (number, layer), norm in zip(layers, (scalings.to(squares) * squares.sqrt()).unbind(), strict=True):
                norms[number][layer] = norm
    return norms
