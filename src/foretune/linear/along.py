"""Changes of features along their tangents, for several sets of adapters in one reading of the examples' rows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from foretune.linear.bilinear import Bilinear, Part
from foretune.tangents import Tangents, product_dtype

AT_ONCE = 2**21  # numbers that are held on the way to a change of the features
Pair = tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]  # A and B


@dataclass(frozen=True)
class Weights:
    """The factors of adapted layers at one moment.

    Attributes:
        now: Of every layer.
        start: Where their change counts from, of the layers where that is not zero.
        scalings: Of every layer.
        dropouts: Probabilities with which inputs of layers are dropped; those that are not named drop none.
    """

    now: Mapping[str, Pair]
    start: Mapping[str, Pair]
    scalings: Mapping[str, float]
    dropouts: Mapping[str, float]


def along_tangents(
    tangents: Tangents, examples: Int[Tensor, " b"], weights: Sequence[Weights], dtype: torch.dtype
) -> Float[Tensor, "b q k"]:
    """Coordinates of the features' changes ``sum_m sum_t g_mqt' dW_mk a_mt`` with k weights each (theory.md section 6).

    Args:
        tangents: Of the network and its examples.
        examples: By number.
        weights: Of layers that have tangents.
        dtype: Of the changes.
    """
    product = product_dtype(tangents.dtype)
    change = torch.zeros(len(examples), tangents.num_directions, len(weights), dtype=dtype)
    adapted = {layer for each in weights for layer in each.now}
    read = [
        (number, entry) for number, entry in enumerate(tangents.entries) if entry.simulated and entry.layer in adapted
    ]
    for layout in dict.fromkeys(entry.rows_per_example for _, entry in read):
        rows, owner = tangents.rows(examples, layout)
        forms, inputs = Bilinear(len(weights)), {}
        for number, entry in read:
            if entry.rows_per_example != layout:
                continue
            if entry.inputs not in inputs:
                inputs[entry.inputs] = _take(tangents.inputs(number), rows).to(product)
            gradients, given = _take(tangents.gradients(number), rows).to(product), inputs[entry.inputs]
            plain, dropped = _parts(entry.layer, weights)
            if plain:
                forms.add(given, gradients, plain)
            for part, share in dropped:  # every layer drops other inputs
                forms.add(nn.functional.dropout(given, share), gradients, [part])
            if forms.size > AT_ONCE:
                change, forms = change.index_add(0, owner, forms.sum()), Bilinear(len(weights))
        if forms.size:
            change = change.index_add(0, owner, forms.sum())
    return change


def _parts(layer: str, weights: Sequence[Weights]) -> tuple[list[Part], list[tuple[Part, float]]]:
    """What a layer adds to each change, and, apart, what it adds with dropped inputs, and how many are dropped."""
    plain: list[Part] = []
    dropped: list[tuple[Part, float]] = []
    for column, each in enumerate(weights):
        if layer in each.start:
            plain.append(Part(column, -each.scalings[layer], *each.start[layer]))
        if layer in each.now:
            part, share = Part(column, each.scalings[layer], *each.now[layer]), each.dropouts.get(layer, 0.0)
            if share:
                dropped.append((part, share))
            else:
                plain.append(part)
    return plain, dropped


def _take(values: Tensor, rows: Int[Tensor, " rows"] | slice) -> Tensor:
    """Some rows, without a copy where they lie together."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)
