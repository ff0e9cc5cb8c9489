"""Changes of the features along their tangents, for several sets of adapters at once.

Reading the examples' rows takes most of the time, so they are read once for all sets.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from foretune.linear.bilinear import Bilinear, Part
from foretune.linear.draws import Draws
from foretune.linear.weights import Weights
from foretune.tangents import Tangents, product_dtype

AT_ONCE = 2**21  # about how many numbers are held in memory before they are summed


def along_tangents(
    tangents: Tangents, examples: Int[Tensor, " b"], weights: Sequence[Weights], dtype: torch.dtype
) -> Float[Tensor, "b q k"]:
    """Compute how far the features of the examples move, for k sets of weights (docs/theory.md section 6).

    The coordinates are ``sum_m sum_t g_mqt' dW_mk a_mt``: a_mt is the input of layer m for token t, g_mqt the gradient
    of direction q at its output, and dW_mk the change of its weight in set k. Sets with the same dropout probability
    drop the same inputs of a layer. Different layers drop different inputs.

    Args:
        tangents: The tangents of the network for all examples.
        examples: Indices of the examples.
        weights: The k sets of weights. Their layers must have tangents.
        dtype: The type of the result.
    """
    device = tangents.inputs(0).device
    product = product_dtype(tangents.dtype, device)
    draws = Draws() if any(share for member in weights for share in member.dropouts.values()) else None
    change = torch.zeros(len(examples), tangents.num_directions, len(weights), dtype=dtype)
    adapted = {layer for member in weights for layer in member.now}
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
            gradients, whole = _take(tangents.gradients(number), rows).to(product), inputs[entry.inputs]
            for share, parts in _parts(entry.layer, weights).items():
                kept = _dropped(whole, share, draws.generator(number)) if draws and share else whole
                forms.add(kept, gradients, parts)
            if forms.size > AT_ONCE:
                change, forms = change.index_add(0, owner, forms.sum()), Bilinear(len(weights))
        if forms.size:
            change = change.index_add(0, owner, forms.sum())
    return change


def _parts(layer: str, weights: Sequence[Weights]) -> dict[float, list[Part]]:
    """The parts of a layer's change of weight for all sets, grouped by the dropout probability of its inputs."""
    parts: dict[float, list[Part]] = {}
    for column, member in enumerate(weights):
        if layer in member.start:
            parts.setdefault(0.0, []).append(Part(column, -member.scalings[layer], *member.start[layer]))
        if layer in member.now:
            share = member.dropouts.get(layer, 0.0)
            parts.setdefault(share, []).append(Part(column, member.scalings[layer], *member.now[layer]))
    return parts


def _dropped(inputs: Float[Tensor, "rows i"], share: float, generator: torch.Generator) -> Float[Tensor, "rows i"]:
    """Dropout: set a share of the inputs to zero and scale up the others, so that their mean stays the same."""
    kept = torch.empty_like(inputs, device="cpu").bernoulli_(1 - share, generator=generator).to(inputs.device)
    return inputs * kept.div_(1 - share) if share < 1 else kept


def _take(values: Tensor, rows: Int[Tensor, " rows"] | slice) -> Tensor:
    """Select rows. A slice is not copied."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)
