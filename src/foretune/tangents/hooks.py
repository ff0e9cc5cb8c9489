"""The engine: one forward pass, then one activation-only backward pass per output direction.

For every call of an adapted layer ``z = W a + b`` it keeps the rows ``a`` that entered and the gradient of every
output at ``z`` (docs/theory.md section 6). Weights get no gradients, and layers below the lowest adapted one are not
visited.
"""

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from foretune.errors import InputError
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
        length: Rows of each example before the cut.
        by_token: Whether the rows are the tokens that the mask keeps (else every row there is, padding or not).
        widths: Input and output width (i, o).
    """

    layer: str
    index: int
    position: int
    shared: int
    row_counts: Int[Tensor, " b"]
    length: int
    by_token: bool
    widths: tuple[int, int]


class Rows:
    """Where the rows of a batch go: here new tensors of the model's type; a subclass keeps them elsewhere.

    Room for all rows of a call, ``length`` an example, gets all of them, with zeros for padding.

    Args:
        device: Where new tensors are made.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    def inputs(self, call: Call, dtype: torch.dtype) -> Float[Tensor, "rows i"]:
        """Room for what entered a call."""
        return torch.empty(int(call.row_counts.sum()), call.widths[0], dtype=dtype, device=self.device)

    def gradients(self, call: Call, num_outputs: int, dtype: torch.dtype) -> Float[Tensor, "rows c o"]:
        """Room for the gradients of every output at what came out of a call."""
        shape = int(call.row_counts.sum()), num_outputs, call.widths[1]
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass
class _Tape:
    """What the hooks write down during the forward pass, and where the backward passes write."""

    mask: Bool[Tensor, "b t"] | None
    room: Rows
    alone: bool = False
    calls: list[Call] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    sources: list[tuple[Tensor, int]] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    direction: int | None = None  # None until the passes begin: ``forward`` may ask for gradients of its own

    def close(self) -> None:
        """Break the cycle graph -> tensor hook -> tape -> graph, which no garbage collector sees."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.sources.clear()
        self.leaves.clear()

    def hook(self, name: str) -> Callable[..., Tensor]:
        def record(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> Tensor:
            source = entered(args, options)
            position, version = len(self.calls), source._version
            shared = next((k for k, (x, then) in enumerate(self.sources) if x is source and then == version), position)
            self.sources.append((source, version))  # a tensor changed in place since then is another input
            keep = None if self.alone else _kept_tokens(source, self.mask)
            padding = None if keep is None or bool(keep.all()) else ~keep.flatten()
            counts = _row_counts(source, self.alone) if keep is None else keep.sum(1).cpu()
            index = sum(call.layer == name for call in self.calls)
            length = source.numel() // (len(counts) * source.shape[-1])
            call = Call(name, index, position, shared, counts, length, keep is not None, (*sizes(layer),))
            if shared == position:
                self.inputs.append(self.room.inputs(call, output.dtype))
                _write(source.detach(), padding, self.inputs[position])
            else:
                self.inputs.append(self.inputs[shared])
            self.calls.append(call)
            leaf = not output.requires_grad
            if leaf:
                output = output.detach().requires_grad_()
                self.leaves.append(output)

            def keep_gradient(gradient: Tensor) -> None:
                if self.direction is None:
                    return
                self.written[position] = True
                _write(gradient, padding, self.gradients[position][:, self.direction])

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
    *,
    alone: bool = False,
) -> tuple[Float[Tensor, "b c"], list[Call], list[Tensor], list[Tensor]]:
    """Inputs of the named layers and the gradients of every output at their outputs, for one batch.

    Examples must not interact (no batch norm): the gradient of ``sum_b outputs[b, c]`` then holds each example's own.
    Layers without a rule are an ``InputError`` that names all of them.

    Args:
        model: Evaluated as it stands (the caller chooses eval mode and the attention implementation).
        layers: The layers to watch, by name.
        forward: Runs the model and returns the outputs whose tangents are wanted.
        mask: True where a token is not padding; None if nothing is padded.
        room: Where to keep the rows of a call; by default in new tensors of the model's type.
        alone: Whether the batch is one example, to which every row of every call belongs (``mask`` is not used).

    Returns:
        The outputs; the calls in the order in which they were made; their inputs; their gradients.

    Raises:
        InputError: A layer runs on something else than rows of each example.
    """
    check_supported(layers)
    room = room or Rows()
    tape = _Tape(mask, room, alone)
    try:
        with frozen(model), _hooked(layers, tape), torch.enable_grad():
            outputs = forward()
            mixed = sorted({call.layer for call in tape.calls if len(call.row_counts) != len(outputs)})
            if mixed:
                raise InputError(
                    "target_modules",
                    f"{', '.join(mixed)} mix the rows of several examples (their inputs' first axis is not the batch)",
                    "leave these layers out, or run the examples one by one",
                )
            num_outputs = outputs.shape[1]
            tape.gradients = [room.gradients(call, num_outputs, outputs.dtype) for call in tape.calls]
            for c in range(num_outputs):
                tape.direction, tape.written = c, [False] * len(tape.calls)
                if tape.leaves and outputs.requires_grad:
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
def frozen(model: nn.Module) -> Generator[None]:
    """No parameter of ``model`` requires gradients inside the block; afterwards those that did do again."""
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


@contextmanager
def evaluating(model: nn.Module) -> Generator[None]:
    """Eval mode inside the block, every module's own mode afterwards."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def _hooked(layers: Mapping[str, nn.Module], tape: _Tape) -> Generator[None]:
    handles = [layer.register_forward_hook(tape.hook(name), with_kwargs=True) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entered(args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """The input of a layer, which may have been passed by name."""
    source: Tensor = args[0] if args else next(iter(options.values()))
    return source


def token_mask(batch: Mapping[str, Tensor]) -> Bool[Tensor, "b t"] | None:
    """True where a token of a batch is not padding; None for inputs without tokens."""
    return batch["attention_mask"].bool() if "attention_mask" in batch else None


def _kept_tokens(source: Tensor, mask: Tensor | None) -> Tensor | None:
    """The token mask if the rows of an input (b, t, i), or flattened (b t, i), are tokens; None if they are not."""
    if mask is None:
        return None
    if source.dim() == 2:
        return mask if len(source) == mask.numel() and mask.shape[1] > 1 else None
    return mask if source.shape[:-1] == mask.shape else None


def _row_counts(source: Tensor, alone: bool) -> Int[Tensor, " b"]:
    """Rows of each example of an input without token mask: (b, i) has one, (b, ..., i) the product of the rest.

    If the example is alone, it has all of them.
    """
    examples = 1 if alone else len(source)
    return torch.full((examples,), source.shape[:-1].numel() // examples, dtype=torch.long)


def _write(values: Tensor, padding: Bool[Tensor, " rows"] | None, target: Tensor) -> None:
    flat = values.reshape(-1, values.shape[-1])
    if padding is None or len(target) == len(flat):
        target.copy_(flat)
        if padding is not None:
            target.index_fill_(0, padding.nonzero().squeeze(1).to(target.device), 0)
    else:
        target.copy_(flat.index_select(0, (~padding).nonzero().squeeze(1)))
