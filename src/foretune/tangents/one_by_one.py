"""Models that must be run on one example at a time.

Some layers run on rows that do not belong to one example of the batch: DeBERTa projects one table of relative
positions for all of them, XLNet puts the tokens before the batch. The gradient at the output of such a call is then a
sum over examples. In a batch of one example every row belongs to that example, whatever the axes mean.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.tangents.hooks import Call, Rows, entered, layer_gradients, token_mask

Batch = Mapping[str, Tensor]
Layers = Mapping[str, nn.Module]
Plan = tuple[int | None, ...]


def one_by_one_plan(
    model: nn.Module, layers: Layers, forward: Callable[[Batch], Tensor], shortest: Batch, longest: Batch
) -> Plan | None:
    """How many rows each call keeps of every example if examples must be run one by one; None if batches will do.

    Batches will do where the first axis of every watched layer's input is the batch, or the batch times its tokens:
    the model is run on two and on three copies of an example, and this axis must grow with them.

    Args:
        model: Evaluated as it stands.
        layers: The layers to watch, by name.
        forward: Runs the model on a batch.
        shortest: A batch of the shortest example alone, without padding.
        longest: The same for the longest example.

    Returns:
        For each call None if it has one row a token, else as many rows as it has for the longest example.
    """
    lengths = [_tokens(shortest), _tokens(longest)]
    two, three = (_input_shapes(model, layers, forward, _copies(shortest, count)) for count in (2, 3))
    if all(_grows(*pair, lengths[0] or 1) for pair in zip(two.shapes, three.shapes, strict=True)):
        return None
    seen = [_input_shapes(model, layers, forward, example) for example in (shortest, longest)]
    _check_alike([each.layers for each in seen], len(two.layers))
    rows = zip(*([shape[:-1].numel() for shape in each.shapes] for each in seen), strict=True)
    return tuple(None if list(pair) == lengths else max(pair) for pair in rows)


def layer_gradients_one_by_one(
    model: nn.Module,
    layers: Layers,
    forward: Callable[[Batch], Float[Tensor, "1 c"]],
    examples: Iterable[Batch],
    plan: Plan,
    room: Rows | None = None,
) -> tuple[Float[Tensor, "b c"], list[Call], list[Tensor], list[Tensor]]:
    """What ``layer_gradients`` gives for a batch, from a pass for each of its examples.

    A layer that does not run alike for all examples is an ``InputError``.

    Args:
        model: Evaluated as it stands.
        layers: The layers to watch, by name.
        forward: Runs the model on one example and returns the outputs whose tangents are wanted.
        examples: Batches of one example.
        plan: Rows of every call, see ``one_by_one_plan``; examples that have fewer get rows of zeros.
        room: Where to keep the rows of a call.

    Returns:
        The outputs; the calls in the order in which they were made; their inputs; their gradients.
    """
    room = room or Rows()
    passes = [
        layer_gradients(model, layers, lambda x=example: forward(x), None, Rows(room.device), alone=True)  # type: ignore[misc]
        for example in examples
    ]
    outputs = torch.cat([each[0] for each in passes])
    _check_alike([[(call.layer, call.shared) for call in each[1]] for each in passes], len(plan))
    together = zip(*(each[1] for each in passes), strict=True)
    calls = [_merged(same, rows) for same, rows in zip(together, plan, strict=True)]
    inputs: list[Tensor] = []
    for call in calls:
        if call.shared == call.position:
            parts = [each[2][call.position] for each in passes]
            inputs.append(_filled(room.inputs(call, parts[0].dtype), parts, call))
        else:
            inputs.append(inputs[call.shared])
    gradients = []
    for call in calls:
        parts = [each[3][call.position] for each in passes]
        gradients.append(_filled(room.gradients(call, outputs.shape[1], parts[0].dtype), parts, call))
    return outputs, calls, inputs, gradients


def rows_of(plan: Plan | None, length: int) -> int:
    """How many rows a call has on average for an example of this many tokens, which is what its memory goes by."""
    if not plan:
        return length
    return math.ceil(sum(length if rows is None else rows for rows in plan) / len(plan))


def singles(batch: Batch) -> Iterator[Batch]:
    """The examples of a batch as batches of one, with their padding."""
    for number in range(len(next(iter(batch.values())))):
        yield {name: value[number : number + 1] for name, value in batch.items()}


def _merged(same: Sequence[Call], rows: int | None) -> Call:
    """One call for all examples, from the same call of each of them.

    Raises:
        InputError: It has more rows than the plan says.
    """
    counts = torch.cat([call.row_counts for call in same])
    if rows is not None:
        if int(counts.max()) > rows:
            raise InputError(
                "modules", f"{same[0].layer} runs on more rows than for the longest example", "leave it out"
            )
        counts = torch.full_like(counts, rows)
    return replace(same[0], row_counts=counts, length=int(counts.max()), by_token=rows is None)


def _filled(target: Tensor, parts: Sequence[Tensor], call: Call) -> Tensor:
    """The rows of the examples in their places, and zeros wherever an example has fewer."""
    everything = len(target) == len(parts) * call.length  # such room has rows for padding too
    start = 0
    for part, count in zip(parts, call.row_counts.tolist(), strict=True):
        end = start + (call.length if everything else count)
        target[start : start + len(part)].copy_(part)
        target[start + len(part) : end].zero_()
        start = end
    return target


class _Shapes:
    """The layers that ran in a forward pass, and the shapes of their inputs."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.shapes: list[torch.Size] = []

    def see(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], options: dict[str, object]) -> None:
            self.layers.append(name)
            self.shapes.append(entered(args, options).shape)

        return hook


def _input_shapes(model: nn.Module, layers: Layers, forward: Callable[[Batch], Tensor], batch: Batch) -> _Shapes:
    seen = _Shapes()
    handles = [layer.register_forward_pre_hook(seen.see(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _copies(example: Batch, count: int) -> Batch:
    return {name: torch.cat([value] * count) for name, value in example.items()}


def _grows(of_two: torch.Size, of_three: torch.Size, tokens: int) -> bool:
    """Whether the first axis of a layer's input counts the copies of an example, or their tokens."""
    per_example = tokens if len(of_two) == 2 and of_two[0] != 2 else 1
    return (of_two[0], of_three[0]) == (2 * per_example, 3 * per_example)


def _tokens(example: Batch) -> int | None:
    mask = token_mask(example)
    return None if mask is None else mask.numel()


def _check_alike(calls: Sequence[Sequence[object]], count: int) -> None:
    """See that the same layers ran in all passes, so many of them, in the same order and on the same inputs.

    Raises:
        InputError: They did not.
    """
    if any(len(each) != count or each != calls[0] for each in calls):
        raise InputError(
            "modules", "some layers do not run as often, or not in the same order, for all examples", "leave them out"
        )
