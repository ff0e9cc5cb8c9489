"""The engine: one forward pass, then one backward pass per output.

Hooks record, for every call of a watched layer ``z = W a + b``, its input rows ``a`` and the gradients of all outputs
at ``z`` (docs/theory.md section 6). Backward passes compute no gradients of weights and stop at the lowest watched
layer.
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
    """One call of a layer on a batch. Rows of padding do not count.

    Attributes:
        layer: Name of the layer.
        index: 0 for the layer's first call in the forward pass, 1 for its second, ...
        position: Number of this call among all calls of the forward pass.
        shared: Position of the first call with the same input tensor. It is the call's own position if no earlier call
            has this input.
        row_counts: Number of rows of every example.
        length: Number of rows of every example, including padding.
        by_token: Whether the rows are the tokens that the mask marks. Otherwise the layer does not run on tokens, and
            all its rows count.
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
    """Provides the memory for the rows of a batch: new tensors of the model's type. A subclass may use other memory.

    The memory has ``sum(row_counts)`` rows for a call. If it has ``length`` rows for every example, padding is
    written too, as zeros.

    Args:
        device: The device of new tensors.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.device = device

    def inputs(self, call: Call, dtype: torch.dtype) -> Float[Tensor, "rows i"]:
        """Memory for the inputs of a call."""
        return torch.empty(int(call.row_counts.sum()), call.widths[0], dtype=dtype, device=self.device)

    def gradients(self, call: Call, num_outputs: int, dtype: torch.dtype) -> Float[Tensor, "rows c o"]:
        """Memory for the gradients of all outputs at the output of a call."""
        shape = int(call.row_counts.sum()), num_outputs, call.widths[1]
        return torch.empty(shape, dtype=dtype, device=self.device)


@dataclass
class _Tape:
    """The records of the hooks: the calls of the forward pass, and the gradients of the backward passes.

    ``sources`` are the input tensors of the calls with their versions. ``leaves`` are layer outputs at which a backward
    pass starts to need gradients. ``written`` says which calls the current backward pass has reached.
    """

    mask: Bool[Tensor, "b t"] | None
    storage: Rows
    one_example: bool = False
    calls: list[Call] = field(default_factory=list)
    inputs: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor] = field(default_factory=list)
    sources: list[tuple[Tensor, int]] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    handles: list[torch.utils.hooks.RemovableHandle] = field(default_factory=list)
    written: list[bool] = field(default_factory=list)
    direction: int | None = None  # the output of the current backward pass; None while ``forward`` runs

    def close(self) -> None:
        """Remove hooks and tensors.

        Otherwise the graph, its tensor hooks and this tape refer to each other in a cycle that Python cannot free.
        """
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.sources.clear()
        self.leaves.clear()

    def hook(self, name: str) -> Callable[..., Tensor]:
        """A forward hook for the layer with this name."""

        def record(layer: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Tensor) -> Tensor:
            source = layer_input(args, options)
            position, version = len(self.calls), source._version
            same = (k for k, (tensor, earlier) in enumerate(self.sources) if tensor is source and earlier == version)
            shared = next(same, position)
            self.sources.append((source, version))  # the version differs if a tensor was changed in place
            mask = None if self.one_example else _mask_of_rows(source, self.mask)
            padding = None if mask is None or bool(mask.all()) else ~mask.flatten()
            counts = _row_counts(source, self.one_example) if mask is None else mask.sum(1).cpu()
            index = sum(call.layer == name for call in self.calls)
            length = source.numel() // (len(counts) * source.shape[-1])
            call = Call(name, index, position, shared, counts, length, mask is not None, (*sizes(layer),))
            if shared == position:
                self.inputs.append(self.storage.inputs(call, output.dtype))
                _write(source.detach(), padding, self.inputs[position])
            else:
                self.inputs.append(self.inputs[shared])
            self.calls.append(call)
            is_leaf = not output.requires_grad
            if is_leaf:
                output = output.detach().requires_grad_()
                self.leaves.append(output)

            def record_gradient(gradient: Tensor) -> None:
                if self.direction is None:
                    return
                self.written[position] = True
                _write(gradient, padding, self.gradients[position][:, self.direction])

            # the hook gets the gradient at the output's present value, even if the model changes it in place later
            self.handles.append(output.register_hook(record_gradient))
            return output.clone() if is_leaf else output  # autograd forbids in-place changes of leaves

        return record


def layer_gradients(
    model: nn.Module,
    layers: Mapping[str, nn.Module],
    forward: Callable[[], Float[Tensor, "b c"]],
    mask: Bool[Tensor, "b t"] | None,
    storage: Rows | None = None,
    *,
    one_example: bool = False,
) -> tuple[Float[Tensor, "b c"], list[Call], list[Tensor], list[Tensor]]:
    """Compute the inputs of the watched layers and the gradients of all outputs at the layers' outputs, for one batch.

    Examples must not interact, so the model must not have batch normalisation. Then the gradient of
    ``sum_b outputs[b, c]`` at the rows of an example is the gradient of the example's own output.

    Args:
        model: The model. The caller sets eval mode and the attention implementation.
        layers: The layers to watch, by name.
        forward: Runs the model and returns the outputs to differentiate.
        mask: True for tokens, False for padding. None if nothing is padded.
        storage: Provides the memory for the rows. The default is new tensors of the model's type.
        one_example: Whether the batch is a single example that owns all rows of every call. ``mask`` is then ignored.

    Returns:
        The outputs, the calls in the order in which they ran, their inputs, and their gradients.

    Raises:
        InputError: Layers have types without a rule, or the first axis of a layer's input is not the batch.
    """
    check_supported(layers)
    storage = storage or Rows()
    tape = _Tape(mask, storage, one_example)
    try:
        with frozen(model), _hooked(layers, tape), torch.enable_grad():
            outputs = forward()
            mixing = sorted({call.layer for call in tape.calls if len(call.row_counts) != len(outputs)})
            if mixing:
                raise InputError(
                    "target_modules",
                    f"{', '.join(mixing)} mix the rows of examples (the first axis of their inputs is not the batch)",
                    "leave these layers out, or run one example at a time",
                )
            num_outputs = outputs.shape[1]
            tape.gradients = [storage.gradients(call, num_outputs, outputs.dtype) for call in tape.calls]
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
    """Inside the block no parameter of the model requires gradients. Afterwards ``requires_grad`` is restored."""
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
    """Inside the block the model is in eval mode. Afterwards the mode of every module is restored."""
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


def layer_input(args: tuple[Any, ...], options: Mapping[str, Any]) -> Tensor:
    """The input of a layer, passed by position or by name."""
    source: Tensor = args[0] if args else next(iter(options.values()))
    return source


def token_mask(batch: Mapping[str, Tensor]) -> Bool[Tensor, "b t"] | None:
    """The mask of a batch: True for tokens, False for padding. None for inputs without tokens."""
    return batch["attention_mask"].bool() if "attention_mask" in batch else None


def _mask_of_rows(source: Tensor, mask: Tensor | None) -> Tensor | None:
    """The token mask, if the rows of an input (b, t, i) or (b t, i) are the tokens. Otherwise None."""
    if mask is None:
        return None
    if source.dim() == 2:
        return mask if len(source) == mask.numel() and mask.shape[1] > 1 else None
    return mask if source.shape[:-1] == mask.shape else None


def _row_counts(source: Tensor, one_example: bool) -> Int[Tensor, " b"]:
    """The number of rows of every example, for an input (b, ..., i) whose rows are not tokens.

    A single example owns all rows.
    """
    examples = 1 if one_example else len(source)
    return torch.full((examples,), source.shape[:-1].numel() // examples, dtype=torch.long)


def _write(values: Tensor, padding: Bool[Tensor, " rows"] | None, target: Tensor) -> None:
    """Copy rows without padding, or with zeros for padding if the target has space for all rows."""
    flat = values.reshape(-1, values.shape[-1])
    if padding is None or len(target) == len(flat):
        target.copy_(flat)
        if padding is not None:
            target.index_fill_(0, padding.nonzero().squeeze(1).to(target.device), 0)
    else:
        target.copy_(flat.index_select(0, (~padding).nonzero().squeeze(1)))
