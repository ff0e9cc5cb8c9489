"""Models that must be run on one example at a time.

In some models the rows of a layer do not belong to one example of the batch. DeBERTa projects one table of relative
positions for all examples; XLNet puts the token axis before the batch axis. In a batch, the gradient at such a row
would be a sum over examples. In a batch of one example, all rows belong to that example.

A row is one input vector of a layer. A call is one run of a layer in the forward pass.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.tangents.hooks import Call, Rows, layer_gradients, layer_input, token_mask

Batch = Mapping[str, Tensor]
Layers = Mapping[str, nn.Module]
Plan = tuple[int | None, ...]  # for every call the rows per example, None for one row per token


def one_by_one_plan(
    model: nn.Module, layers: Layers, forward: Callable[[Batch], Tensor], shortest: Batch, longest: Batch
) -> Plan | None:
    """Decide whether a model must be run on one example at a time, and how many rows every call then has.

    Batches are possible if the first axis of the input of every watched layer is the batch, or the batch times its
    tokens. To find out, the model runs on two and on three copies of an example: this axis must grow with the copies.

    Args:
        model: The model. The caller sets eval mode.
        layers: The layers to watch, by name.
        forward: Runs the model on a batch.
        shortest: A batch of only the shortest example, without padding.
        longest: A batch of only the longest example.

    Returns:
        None if batches are possible. Otherwise for every call None if it has one row per token, or else its number of
        rows for the longest example.
    """
    lengths = [_tokens(shortest), _tokens(longest)]
    two, three = (_input_shapes(model, layers, forward, _copies(shortest, count)) for count in (2, 3))
    if all(_grows(*pair, lengths[0] or 1) for pair in zip(two.shapes, three.shapes, strict=True)):
        return None
    passes = [_input_shapes(model, layers, forward, example) for example in (shortest, longest)]
    _check_same_calls([shapes.layers for shapes in passes], len(two.layers))
    rows = zip(*([shape[:-1].numel() for shape in shapes.shapes] for shapes in passes), strict=True)
    return tuple(None if list(pair) == lengths else max(pair) for pair in rows)


def layer_gradients_one_by_one(
    model: nn.Module,
    layers: Layers,
    forward: Callable[[Batch], Float[Tensor, "1 c"]],
    examples: Iterable[Batch],
    plan: Plan,
    storage: Rows | None = None,
) -> tuple[Float[Tensor, "b c"], list[Call], list[Tensor], list[Tensor]]:
    """Compute the same as ``layer_gradients``, with a pass for every example.

    If a layer does not run in the same way for all examples, this raises an ``InputError``.

    Args:
        model: The model. The caller sets eval mode.
        layers: The layers to watch, by name.
        forward: Runs the model on one example and returns the outputs to differentiate.
        examples: Batches of one example.
        plan: The result of ``one_by_one_plan``. Examples with fewer rows get rows of zeros.
        storage: Provides the memory for the rows.

    Returns:
        The outputs, the calls in the order in which they ran, their inputs, and their gradients.
    """
    storage = storage or Rows()
    passes = [
        layer_gradients(model, layers, lambda x=example: forward(x), None, Rows(storage.device), one_example=True)  # type: ignore[misc]
        for example in examples
    ]
    all_outputs, all_calls, all_inputs, all_gradients = zip(*passes, strict=True)
    outputs = torch.cat(all_outputs)
    _check_same_calls([[(call.layer, call.shared) for call in calls] for calls in all_calls], len(plan))
    calls = [_merged(same, rows) for same, rows in zip(zip(*all_calls, strict=True), plan, strict=True)]
    inputs: list[Tensor] = []
    for call in calls:
        if call.shared == call.position:
            parts = [tensors[call.position] for tensors in all_inputs]
            inputs.append(_fill(storage.inputs(call, parts[0].dtype), parts, call))
        else:
            inputs.append(inputs[call.shared])
    gradients = []
    for call in calls:
        parts = [tensors[call.position] for tensors in all_gradients]
        gradients.append(_fill(storage.gradients(call, outputs.shape[1], parts[0].dtype), parts, call))
    return outputs, calls, inputs, gradients


def rows_of(plan: Plan | None, length: int) -> int:
    """The mean number of rows of a call for an example of this many tokens. Memory is proportional to it."""
    if not plan:
        return length
    return math.ceil(sum(length if rows is None else rows for rows in plan) / len(plan))


def singles(batch: Batch) -> Iterator[Batch]:
    """Yield the examples of a batch as batches of one example, with their padding."""
    for number in range(len(next(iter(batch.values())))):
        yield {name: value[number : number + 1] for name, value in batch.items()}


def _merged(same: Sequence[Call], rows: int | None) -> Call:
    """Merge the call of every example into one call for all examples.

    Raises:
        InputError: An example has more rows than the plan says.
    """
    counts = torch.cat([call.row_counts for call in same])
    if rows is not None:
        if int(counts.max()) > rows:
            raise InputError(
                "modules", f"{same[0].layer} has more rows for some text than for the longest one", "leave it out"
            )
        counts = torch.full_like(counts, rows)
    return replace(same[0], row_counts=counts, length=int(counts.max()), by_token=rows is None)


def _fill(target: Tensor, parts: Sequence[Tensor], call: Call) -> Tensor:
    """Copy the rows of all examples to the target, and write zeros where an example has fewer rows."""
    with_padding = len(target) == len(parts) * call.length
    start = 0
    for part, count in zip(parts, call.row_counts.tolist(), strict=True):
        end = start + (call.length if with_padding else count)
        target[start : start + len(part)].copy_(part)
        target[start + len(part) : end].zero_()
        start = end
    return target


class _Shapes:
    """The layers that ran in a forward pass, in order, and the shapes of their inputs."""

    def __init__(self) -> None:
        self.layers: list[str] = []
        self.shapes: list[torch.Size] = []

    def watch(self, name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[object, ...], options: dict[str, object]) -> None:
            self.layers.append(name)
            self.shapes.append(layer_input(args, options).shape)

        return hook


def _input_shapes(model: nn.Module, layers: Layers, forward: Callable[[Batch], Tensor], batch: Batch) -> _Shapes:
    shapes = _Shapes()
    handles = [layer.register_forward_pre_hook(shapes.watch(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        with torch.no_grad():
            forward(batch)
    finally:
        for handle in handles:
            handle.remove()
    return shapes


def _copies(example: Batch, count: int) -> Batch:
    return {name: torch.cat([value] * count) for name, value in example.items()}


def _grows(of_two: torch.Size, of_three: torch.Size, tokens: int) -> bool:
    """Whether the first axis of a layer's input has the length of the copies of an example, or of all their tokens."""
    per_example = tokens if len(of_two) == 2 and of_two[0] != 2 else 1
    return (of_two[0], of_three[0]) == (2 * per_example, 3 * per_example)


def _tokens(example: Batch) -> int | None:
    mask = token_mask(example)
    return None if mask is None else mask.numel()


def _check_same_calls(passes: Sequence[Sequence[object]], count: int) -> None:
    """Check that all passes made the same calls.

    Args:
        passes: The calls of every pass, in order.
        count: The number of calls in a pass.

    Raises:
        InputError: The calls differ.
    """
    if any(len(calls) != count or calls != passes[0] for calls in passes):
        raise InputError(
            "modules",
            "some layers do not run equally often, or not in the same order, for all examples",
            "leave them out",
        )
