"""Changes of features along their tangents, for several sets of adapters in one reading of the examples' rows."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foretune.linear.bilinear import Bilinear, Part
from foretune.linear.draws import Draws
from foretune.linear.weights import Weights
from foretune.tangents import Tangents, product_dtype

AT_ONCE = 2**21  # numbers that are held on the way to a change of the features


def along_tangents(
    tangents: Tangents, examples: Int[Tensor, " b"], weights: Sequence[Weights], dtype: torch.dtype
) -> Float[Tensor, "b q k"]:
    """Coordinates of the features' changes ``sum_m sum_t g_mqt' dW_mk a_mt`` with k weights each (theory.md section 6).

    Weights with the same dropout drop the same inputs; every layer drops others.

    Args:
        tangents: Of the network and its examples.
        examples: By number.
        weights: Of layers that have tangents.
        dtype: Of the changes.
    """
    device = tangents.inputs(0).device
    product = product_dtype(tangents.dtype, device)
    draws = Draws() if any(share for each in weights for share in each.dropouts.values()) else None
    change = torch.zeros(len(examples), tangents.num_directions, len(weights), dtype=dtype)
    adapted = {layer for each in weights for layer in each.now}
    read = [
        (number, entry) for number, entry in enumerate(tangents.entries) if entry.simulated and entry.layer in adapted
    ]
    for layout in dict.fromkeys(entry.rows_per_example for _, entry in read):
        rows, owner = tangents.rows(examples, layout)
        rows = rows if isinstance(rows, slice) else rows.to(device)
        forms, inputs = Bilinear(len(weights)), {}
        for number, entry in read:
            if entry.rows_per_example != layout:
                continue
            if entry.inputs not in inputs:
                inputs[entry.inputs] = _take(tangents.inputs(number), rows).to(product)
            gradients, given = _take(tangents.gradients(number), rows).to(product), inputs[entry.inputs]
            for share, parts in _parts(entry.layer, weights).items():
                some = _dropped(given, share, draws.generator(number)) if draws and share else given
                forms.add(some, gradients, parts)
            if forms.size > AT_ONCE:
                change, forms = change.index_add(0, owner, forms.sum()), Bilinear(len(weights))
        if forms.size:
            change = change.index_add(0, owner, forms.sum())
    return change


def _parts(layer: str, weights: Sequence[Weights]) -> dict[float, list[Part]]:
    """What a layer adds to each change, by the share of its inputs that is dropped."""
    found: dict[float, list[Part]] = {}
    for column, each in enumerate(weights):
        if layer in each.start:
            found.setdefault(0.0, []).append(Part(column, -each.scalings[layer], *each.start[layer]))
        if layer in each.now:
            share = each.dropouts.get(layer, 0.0)
            found.setdefault(share, []).append(Part(column, each.scalings[layer], *each.now[layer]))
    return found


def _dropped(inputs: Float[Tensor, "rows i"], share: float, generator: torch.Generator) -> Float[Tensor, "rows i"]:
    """Inputs without a share of them, and the others larger by as much."""
    kept = torch.empty_like(inputs, device="cpu").bernoulli_(1 - share, generator=generator).to(inputs.device)
    return inputs * kept.div_(1 - share) if share < 1 else kept


def _take(values: Tensor, rows: Int[Tensor, " rows"] | slice) -> Tensor:
    """Some rows, without a copy where they lie together."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)
