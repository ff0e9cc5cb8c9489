"""The head: the modules at the end of a network that are trained in full, usually a new classifier.

The vectors that enter the head are called its features. A new head is random and changes much in training, so tangents
are taken of the features and not of the outputs (docs/theory.md section 6). Simulated runs train the head itself.
"""

import copy
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.tangents.hooks import frozen
from foretune.task.module_names import HEAD_NAMES

LINKS: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": torch.relu,
    "tanh": torch.tanh,
    "gelu": nn.functional.gelu,
    "silu": nn.functional.silu,
}


def head_names(model: nn.Module, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """The names of the modules that are trained in full.

    These are the modules whose names end as peft expects of a new head, and the modules whose names end with one of
    ``extra``.
    """
    endings = (*HEAD_NAMES, *extra)
    names = [name for name, _ in model.named_modules() if name.endswith(endings)]
    return tuple(name for name in names if not any(name.startswith(f"{other}.") for other in names))


class Head(nn.Module):
    """The trained modules at the end of a network, as a function of the features that enter them.

    Args:
        names: Names of the modules in the model, in the order in which they run. Without modules, the features are the
            outputs.
        modules: The modules.
        links: The function in front of every module, a key of ``LINKS``.
        dropouts: The probability of the dropout in front of every module, after the link.
        sequence: Whether the first module expects a token axis. It uses one token.
    """

    def __init__(
        self,
        names: Sequence[str],
        modules: Sequence[nn.Module],
        links: Sequence[str],
        dropouts: Sequence[float],
        sequence: bool,
    ) -> None:
        super().__init__()
        self.names, self.links, self.dropouts, self.sequence = (
            tuple(names),
            tuple(links),
            tuple(dropouts),
            sequence,
        )
        self.steps = nn.ModuleList(modules)

    @property
    def linear(self) -> bool:
        """Whether the outputs are affine in the features. Their gradients are then the same for all examples."""
        plain = all(link == "identity" for link in self.links)
        return plain and all(isinstance(step, nn.Linear) for step in self.steps)

    def gradients(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "k c d"]:
        """Gradients of all outputs in the features: for every example (k = b), or one for all if the head is affine."""
        features = (features[:1] if self.linear else features).detach().requires_grad_()
        with torch.enable_grad():
            return gradients_in(features, self(features))

    def with_modules(self, model: nn.Module) -> "Head":
        """The same head with copies of the modules of another model, such as the model of another seed."""
        modules = [copy.deepcopy(model.get_submodule(name)) for name in self.names]
        return Head(self.names, modules, self.links, self.dropouts, self.sequence)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Compute the outputs of the network from the features."""
        hidden = features.unsqueeze(1) if self.sequence else features
        for step, link, dropout in zip(self.steps, self.links, self.dropouts, strict=True):
            hidden = step(nn.functional.dropout(LINKS[link](hidden), dropout, self.training))
        return hidden.reshape(len(features), -1)


@dataclass
class Watch:
    """Inputs and outputs of the head's modules, and outputs and probabilities of dropouts, in one forward pass."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    dropouts: list[tuple[Tensor, float]] = field(default_factory=list)

    def clear(self) -> None:
        """Drop the tensors and the graphs to which they belong."""
        self.inputs.clear()
        self.outputs.clear()
        self.dropouts.clear()


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Generator[Watch]:
    """Record the named modules and all dropouts of a model while the block runs."""
    watch, handles = Watch(), []

    def watch_module(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            watch.inputs[name], watch.outputs[name] = args[0], output

        return hook

    def watch_dropout(module: nn.Dropout, _: tuple[Tensor, ...], output: Tensor) -> None:
        watch.dropouts.append((output, module.p))

    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_hook(watch_module(name)))
        elif isinstance(module, nn.Dropout):
            handles.append(module.register_forward_hook(watch_dropout))
    try:
        yield watch
    finally:
        watch.clear()
        for handle in handles:
            handle.remove()


def find_head(model: nn.Module, names: Sequence[str], batch: Mapping[str, Tensor]) -> Head:
    """Cut the head off the model, and check on one batch that it gives the model's outputs.

    Args:
        model: The model, in eval mode.
        names: Names of the modules that are trained in full.
        batch: Inputs of the model.

    Returns:
        The head with copies of the modules.

    Raises:
        InputError: The modules do not follow each other, the outputs depend on more than one feature vector per
            example, or some outputs are not finite.
    """
    if not names:
        return Head((), (), (), (), False)
    with watched(model, names) as watch, torch.no_grad():
        logits = checked_finite(outputs_of(model, batch))
        order = list(watch.inputs)
        previous: list[Tensor | None] = [None, *(watch.outputs[name] for name in order)]
        links = [_link(name, source, watch.inputs[name]) for name, source in zip(order, previous, strict=False)]
        dropouts = [
            max((p for dropped, p in watch.dropouts if dropped is watch.inputs[name]), default=0.0) for name in order
        ]
        sequence = watch.inputs[order[0]].dim() == 3
        modules = [copy.deepcopy(model.get_submodule(name)) for name in order]
        head = Head(order, modules, links, dropouts, sequence).eval()
    features = features_of(model, head, batch)
    tolerance = 5 * torch.finfo(logits.dtype).eps ** 0.5 if logits.dtype.itemsize < 4 else 1e-3
    if features.shape[0] != logits.shape[0] or not torch.allclose(
        head(features), logits, rtol=tolerance, atol=tolerance / 10
    ):
        raise InputError(
            "model",
            f"its outputs do not depend only on the input of {order[0]!r}, the first module that is trained in full",
            "use a model class that ends with this module",
        )
    return head


def features_of(model: nn.Module, head: Head, batch: Mapping[str, Tensor]) -> Float[Tensor, "b d"]:
    """The features of a batch, one vector per example, without their graph.

    If the head reads one token of a sequence, the gradients of the outputs tell which token it is. Gradients are
    computed only down to the head's input.
    """
    if not head.names:
        with torch.no_grad():
            return outputs_of(model, batch)

    def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])

    handle = model.get_submodule(head.names[0]).register_forward_pre_hook(cut)
    try:
        with frozen(model), watched(model, head.names) as watch, torch.enable_grad():
            return head_features(head, watch, outputs_of(model, batch))[0].detach()
    finally:
        handle.remove()


def _link(name: str, source: Tensor | None, target: Tensor) -> str:
    """Find the function that turns the output of the previous head module into the input of this one.

    Raises:
        InputError: No function of ``LINKS`` does.
    """
    for key, function in LINKS.items():
        if source is None or (source.shape == target.shape and torch.allclose(function(source), target)):
            return key
    raise InputError(
        "modules_to_save",
        f"{name!r} is trained in full, but does not directly follow another such module (only {', '.join(LINKS)} "
        "may lie between them)",
        "leave modules_to_save out, so that only the head is trained in full, and adapt the other layers",
    )


def outputs_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "b c"]:
    """Compute the model's logits for a batch. Labels in the batch are ignored.

    Raises:
        InputError: The model does not return one row of outputs per example.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = model(**inputs).logits
    if outputs.dim() != 2:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        raise InputError(
            "model",
            f"{type(base).__name__} has outputs of shape {tuple(outputs.shape)}, and foretune only supports models "
            "with one row of outputs per text",
            "load it with AutoModelForSequenceClassification",
        )
    return outputs


def checked_finite(values: Float[Tensor, "b x"]) -> Float[Tensor, "b x"]:
    """Return outputs or features of the model unchanged.

    Raises:
        InputError: Some values are infinite or NaN.
    """
    if not bool(values.isfinite().all()):
        raise InputError(
            "model",
            f"some of its outputs ({str(values.dtype).removeprefix('torch.')}) are infinite or NaN",
            "use undamaged weights, and load half-precision weights in bfloat16 or float32",
        )
    return values


def gradients_in(features: Float[Tensor, "b ..."], outputs: Float[Tensor, "b c"]) -> Float[Tensor, "b c ..."]:
    """Gradients of all outputs in the features of the same example. Examples must not interact."""
    return torch.stack([torch.autograd.grad(total, features, retain_graph=True)[0] for total in outputs.sum(0)], 1)


def head_features(
    head: Head, watch: Watch, logits: Float[Tensor, "b c"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b c d"]]:
    """The features that entered the head in the watched forward pass, and the gradients of the outputs in them.

    Raises:
        InputError: No adapted layer is below the head, or the outputs depend on several tokens of the head's input.
    """
    if not head.names:
        eye = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return logits, eye.expand(len(logits), -1, -1)
    inputs = watch.inputs[head.names[0]]
    if not inputs.requires_grad:
        raise InputError("target_modules", "no adapted layer is below the head", "adapt layers before the head")
    jacobian = gradients_in(inputs, logits)  # (b, c, d) or (b, c, t, d)
    if inputs.dim() == 2:
        return inputs, jacobian
    used = jacobian.abs().amax((1, 3)) > 0  # (b, t)
    if bool((used.sum(1) != 1).any()):
        raise InputError("model", "its head reads several tokens of a text", "set model.pooling to mean")
    token, example = used.float().argmax(1), torch.arange(len(inputs), device=inputs.device)
    return inputs[example, token], jacobian[example, :, token]
