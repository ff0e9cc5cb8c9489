"""The engine: one forward pass, then one activation-only backward pass per output direction.

For every call of an adapted layer ``z = W a + b`` it keeps the rows ``a`` that entered and the gradient of every
output at ``z`` (theory.md section 6). Weights get no gradients, and nothing below the lowest adapted layer is visited.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foretune.tangents.rules import check_supported, sizes


@dataclass(frozen=True)
class Call:
    """One call of one layer on one batch, cut to the rows that are not padding.

    Attributes:
        layer: Name of the layer.
        index: 0 for its first call in the forward pass, 1 for its second, ...
        position: Number of this call among all calls of the batch.
        shared: Position of the first call that was given the same input tensor (its own, if none was).
        row_counts: Rows of each example.
        by_token: Whether the rows are tokens (else one row an example).
        widths: Input and output width (i, o).
    """

    layer: str
    index: int
    position: int
    shared: int
    row_counts: Int[Tensor, "b"]
    by_token: bool
    widths: tuple[int, int]


class Rows:
    """Where the rows of a batch go: here new tensors of the model's type; a subclass keeps them elsewhere."""

    def inputs(self, call: Call, dtype: torch.dtype) -> Float[Tensor, "rows i"]:
        """Room for what entered a call."""
        return torch.empty(int(call.row_counts.sum()), call.widths[0], dtype=dtype)

    def gradients(self, call: Call, num_outputs: int, dtype: torch.dtype) -> Float[Tensor, "rows c o"]:
        """Room for the gradients of every output at what came out of a call."""
        return torch.empty(int(call.row_counts.sum()), num_outputs, call.widths[1], dtype=dtype)


@dataclass
class _Tape:
    """What the hooks write down during the forward pass, and where the backward passes write."""

    mask: Bool[Tensor, "b t"] | None
    room: Rows
    calls: list[Call] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    sources: list[Tensor] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    direction: int = 0

    def close(self) -> None:
        """Break the cycle graph -> tensor hook -> tape -> graph, which no garbage collector sees."""
        for handle in self.handles:
            handle.remove()
        for tensors in (self.handles, self.sources, self.leaves):
            tensors.clear()

    def hook(self, name: str) -> Callable[..., Tensor]:
        def record(layer: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            source, position = args[0], len(self.calls)
            shared = next((k for k, earlier in enumerate(self.sources) if earlier is source), position)
            self.sources.append(source)
            keep = _kept_tokens(source, self.mask)
            rows = None if keep is None or bool(keep.all()) else keep.flatten().nonzero().squeeze(1)
            counts = keep.sum(1) if keep is not None else torch.ones(len(source), dtype=torch.long)
            index = sum(call.layer == name for call in self.calls)
            call = Call(name, index, position, shared, counts.cpu(), keep is not None, tuple(sizes(layer)))
            if shared == position:
                self.inputs.append(self.room.inputs(call, output.dtype))
                _write(source.detach(), rows, self.inputs[position])
            else:
                self.inputs.append(self.inputs[shared])
            self.calls.append(call)
            leaf = not output.requires_grad
            if leaf:
                output = output.detach().requires_grad_()
                self.leaves.append(output)

            def keep_gradient(gradient: Tensor) -> None:
                self.written[position] = True
                _write(gradient, rows, self.gradients[position][:, self.direction])

            # a tensor hook sees the gradient of the value at this point, whatever the model later does to it in place
            self.handles.append(output.register_hook(keep_gradient))
            return output.clone() if leaf else output  # autograd forbids in-place changes of leaves

        return record


def layer_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    forward: Callable[[], Float[Tensor, "b c"]],
    mask: Bool[Tensor, "b t"] | None,
    room: Rows | None = None,
) -> tuple[Float[Tensor, "b c"], list[Call], list[Tensor], list[Tensor]]:
    """Inputs of the named layers and the gradients of every output at their outputs, for one batch.

    Examples must not interact (no batch norm): the gradient of ``sum_b outputs[b, c]`` then holds each example's own.

    Args:
        model: Evaluated as it stands (the caller chooses eval mode and the attention implementation).
        layers: The layers to watch, by name.
        forward: Runs the model and returns the outputs whose tangents are wanted.
        mask: True where a token is not padding; None if nothing is padded.
        room: Where to keep the rows of a call; by default in new tensors of the model's type.

    Returns:
        The outputs; the calls in the order in which they were made; their inputs; their gradients.

    Raises:
        InputError: A layer has no rule.
    """
    check_supported(layers)
    room = room or Rows()
    tape = _Tape(mask, room)
    try:
        with _frozen(model), _hooked(layers, tape), torch.enable_grad():
            outputs = forward()
            num_outputs = outputs.shape[1]
            tape.gradients = [room.gradients(call, num_outputs, outputs.dtype) for call in tape.calls]
            for c in range(num_outputs):
                tape.direction, tape.written = c, [False] * len(tape.calls)
                torch.autograd.grad(
                    outputs[:, c].sum(), tape.leaves, retain_graph=c + 1 < num_outputs, allow_unused=True
                )
                for rows, written in zip(tape.gradients, tape.written, strict=True):
                    if not written:  # this output does not depend on this call
                        rows[:, c].zero_()
    finally:
        tape.close()
    return outputs.detach(), tape.calls, tape.inputs, tape.gradients


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], tape: _Tape) -> Iterator[None]:
    handles = [layer.register_forward_hook(tape.hook(name)) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _kept_tokens(source: Tensor, mask: Tensor | None) -> Tensor | None:
    """The token mask for an input of shape (b, t, i); None for (b, i), which has one row an example."""
    if source.dim() == 2:
        return None
    tokens = source.flatten(1, -2).shape[1]
    if mask is not None and mask.shape == (source.shape[0], tokens):
        return mask
    return torch.ones(source.shape[0], tokens, dtype=torch.bool, device=source.device)


def _write(values: Tensor, rows: Tensor | None, target: Tensor) -> None:
    flat = values.reshape(-1, values.shape[-1])
    target.copy_(flat if rows is None else flat.index_select(0, rows))
