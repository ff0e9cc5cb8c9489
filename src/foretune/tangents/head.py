"""Where the network ends and its trained head begins.

A new classification head is random and trained too, so tangents are taken of the *features entering it*
(docs/theory.md section 6), and the head itself is simulated by its own modules.
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
    """Names of the modules trained in full: the new head by peft's rule (name endings), and those in ``extra``."""
    endings = (*HEAD_NAMES, *extra)
    found = [name for name, _ in model.named_modules() if name.endswith(endings)]
    return tuple(name for name in found if not any(name.startswith(f"{other}.") for other in found))


class Head(nn.Module):
    """The trained end of a network as a function of the features that enter it.

    Args:
        names: The modules' names in the model, in the order in which they run; none for a head that is not trained:
            the features are then the outputs themselves.
        modules: The modules themselves.
        links: What is applied in front of each module: a key of ``LINKS``.
        dropouts: Probability of the dropout in front of each module, after the link.
        sequence: Whether the first module expects a token axis (of which it uses one position).
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
        """Whether the outputs are affine in the features, so that their gradient is the same for every example."""
        plain = all(link == "identity" for link in self.links)
        return plain and all(isinstance(step, nn.Linear) for step in self.steps)

    def gradients(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "k c d"]:
        """Gradient of every output in the features: of each example (k = b), or one for all if they are affine."""
        some = (features[:1] if self.linear else features).detach().requires_grad_()
        with torch.enable_grad():
            return gradients_in(some, self(some))

    def with_modules(self, model: nn.Module) -> "Head":
        """The same head with copies of another model's modules, such as those of another seed."""
        modules = [copy.deepcopy(model.get_submodule(name)) for name in self.names]
        return Head(self.names, modules, self.links, self.dropouts, self.sequence)

    def forward(self, features: Float[Tensor, "b d"]) -> Float[Tensor, "b c"]:
        """Outputs for features (b, d)."""
        hidden = features.unsqueeze(1) if self.sequence else features
        for step, link, dropout in zip(self.steps, self.links, self.dropouts, strict=True):
            hidden = step(nn.functional.dropout(LINKS[link](hidden), dropout, self.training))
        return hidden.reshape(len(features), -1)


@dataclass
class Watch:
    """What passes through the head modules and the dropouts during one forward pass."""

    inputs: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    dropouts: list[tuple[Tensor, float]] = field(default_factory=list)

    def clear(self) -> None:
        """Forget the tensors, and the graphs they hold."""
        self.inputs.clear()
        self.outputs.clear()
        self.dropouts.clear()


@contextmanager
def watched(model: nn.Module, names: Sequence[str]) -> Generator[Watch]:
    """Watch the named modules and every dropout of ``model``."""
    watch, handles = Watch(), []

    def see(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            watch.inputs[name], watch.outputs[name] = args[0], output

        return hook

    def see_dropout(module: nn.Dropout, _: tuple[Tensor, ...], output: Tensor) -> None:
        watch.dropouts.append((output, module.p))

    for name, module in model.named_modules():
        if name in names:
            handles.append(module.register_forward_hook(see(name)))
        elif isinstance(module, nn.Dropout):
            handles.append(module.register_forward_hook(see_dropout))
    try:
        yield watch
    finally:
        watch.clear()
        for handle in handles:
            handle.remove()


def find_head(model: nn.Module, names: Sequence[str], batch: Mapping[str, Tensor]) -> Head:
    """Cut the model in front of its trained modules, checked on one batch.

    Raises:
        InputError: The modules do not follow each other, or the outputs are not a function of one feature vector an
            example, or no numbers.
    """
    if not names:
        return Head((), (), (), (), False)
    with watched(model, names) as watch, torch.no_grad():
        logits = finite(outputs_of(model, batch))
        order = list(watch.inputs)
        before: list[Tensor | None] = [None, *(watch.outputs[name] for name in order)]
        links = [_link(name, source, watch.inputs[name]) for name, source in zip(order, before, strict=False)]
        dropouts = [max((p for seen, p in watch.dropouts if seen is watch.inputs[name]), default=0.0) for name in order]
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
            f"its outputs are not a function of what enters {order[0]!r} alone",
            "use another model class",
        )
    return head


def features_of(model: nn.Module, head: Head, batch: Mapping[str, Tensor]) -> Float[Tensor, "b d"]:
    """What enters the head for a batch, one vector an example; nothing below the head is differentiated."""
    if not head.names:
        with torch.no_grad():
            return outputs_of(model, batch)

    def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return (args[0].detach().requires_grad_(), *args[1:])

    handle = model.get_submodule(head.names[0]).register_forward_pre_hook(cut)
    try:
        with frozen(model), watched(model, head.names) as watch, torch.enable_grad():
            return entering(head, watch, outputs_of(model, batch))[0].detach()
    finally:
        handle.remove()


def _link(name: str, source: Tensor | None, entered: Tensor) -> str:
    """Which function leads from the head module before to this one.

    Raises:
        InputError: None of ``LINKS`` does.
    """
    for key, function in LINKS.items():
        if source is None or (source.shape == entered.shape and torch.allclose(function(source), entered)):
            return key
    raise InputError(
        "modules_to_save",
        f"{name!r} does not follow another trained module through one of {', '.join(LINKS)}",
        "train only the head in full (leave modules_to_save out) and adapt the other layers",
    )


def outputs_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Float[Tensor, "b c"]:
    """The model's logits for a batch; labels in it are left out.

    Raises:
        InputError: The model does not give one row of outputs for every example.
    """
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    outputs = model(**inputs).logits
    if outputs.dim() != 2:
        base = model.get_base_model() if isinstance(model, PeftModel) else model
        raise InputError(
            "model",
            f"{type(base).__name__} has outputs of shape {tuple(outputs.shape)}, and only models with one row of "
            "outputs for every text have tangents so far",
            "load it with AutoModelForSequenceClassification",
        )
    return outputs


def finite(values: Float[Tensor, "b x"]) -> Float[Tensor, "b x"]:
    """Outputs or features of the model as they are.

    Raises:
        InputError: Some are infinite or not a number.
    """
    if not bool(values.isfinite().all()):
        raise InputError(
            "model",
            f"some of its outputs ({str(values.dtype).removeprefix('torch.')}) are infinite or no numbers",
            "load weights that are whole, and half-precision ones in bfloat16 or float32",
        )
    return values


def gradients_in(features: Float[Tensor, "b ..."], outputs: Float[Tensor, "b c"]) -> Float[Tensor, "b c ..."]:
    """Gradient of every output in its own example's features; examples must not interact."""
    sums = outputs.sum(0)
    return torch.stack([torch.autograd.grad(each, features, retain_graph=True)[0] for each in sums], 1)


def entering(
    head: Head, watch: Watch, logits: Float[Tensor, "b c"]
) -> tuple[Float[Tensor, "b d"], Float[Tensor, "b c d"]]:
    """The features that entered the head in the forward pass just made, and the outputs' gradients in them.

    Raises:
        InputError: The outputs depend on several positions of the features.
    """
    if not head.names:
        eye = torch.eye(logits.shape[1], dtype=logits.dtype, device=logits.device)
        return logits, eye.expand(len(logits), -1, -1)
    entered = watch.inputs[head.names[0]]
    if not entered.requires_grad:
        raise InputError("target_modules", "no adapted layer lies below the head", "adapt layers of the network itself")
    jacobian = gradients_in(entered, logits)  # (b, c, d) or (b, c, t, d)
    if entered.dim() == 2:
        return entered, jacobian
    used = jacobian.abs().amax((1, 3)) > 0  # (b, t)
    if bool((used.sum(1) != 1).any()):
        raise InputError("model", "its head reads several positions of an example", "set model.pooling to mean")
    position, example = used.float().argmax(1), torch.arange(len(entered), device=entered.device)
    return entered[example, position], jacobian[example, :, position]
