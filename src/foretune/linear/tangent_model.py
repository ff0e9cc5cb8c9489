"""The weight-space tangent model: a fine-tune in which only the adapters and the head are computed.

``f(x) = head(h0(x) + Q' t(x))`` with ``t_q(x) = sum_m sum_t g_mqt' dW_m a_mt`` and ``dW = s (B A - B0 A0)``
(theory.md section 6): linear in the weights' change, bilinear in the adapters' factors, exact in the head. With a
``Growth`` the features change by as much more as the layers multiply each other, and no further than the network's last
normalisation lets them; of directions that were not taken the adapters get noise (``foretune.linear.left_out``). These
are estimates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.linear.along import along_tangents
from foretune.linear.growth import Growth, bounded, moved
from foretune.linear.left_out import LeftOut
from foretune.linear.unwalked import Unwalked
from foretune.linear.weights import Factors, Weights, change_norms
from foretune.tangents import Adapter, Head, Tangents


class TangentModel(Unwalked):
    """A stand-in for the adapted network: examples are given by number, outputs and loss are as the network's.

    Its parameters carry the names that they have in the peft model, so that a ``Trainer`` groups, decays and clips
    them alike.

    Args:
        tangents: Of the network and its examples.
        adapters: The adapters at the start of training; their values are trained.
        head: The head at the start of training; likewise.
        config: The network's, for ``Trainer``.
        accepts_loss_kwargs: Whether ``Trainer`` leaves the averaging over accumulated batches to the model.
        growth: How far outputs outgrow their tangents, within the bounds of the last normalisation; by default they
            are what the tangents say.

    Raises:
        ValueError: An adapted layer has no tangents, or several adapters.
    """

    def __init__(
        self,
        tangents: Tangents,
        adapters: Sequence[Adapter],
        head: Head,
        *,
        config: PretrainedConfig | None = None,
        accepts_loss_kwargs: bool = False,
        growth: Growth | None = None,
    ) -> None:
        super().__init__()
        missing = sorted({adapter.layer for adapter in adapters} - set(tangents.layers))
        if missing:
            raise ValueError(f"no tangents of {', '.join(missing)}: collect them with modules={missing!r}")
        self.tangents, self.growth = tangents, growth
        self.adapters = {adapter.layer: adapter for adapter in adapters}
        if len(self.adapters) < len(adapters):
            raise ValueError("several adapters on one layer: train them one at a time")
        self.config, self.accepts_loss_kwargs = config, accepts_loss_kwargs  # where Trainer looks for them
        self.dtype = torch.promote_types(tangents.dtype, torch.float32)
        self.head = head.to(self.dtype)
        self.scalings = {adapter.layer: adapter.scaling for adapter in adapters}
        self.dropouts = {adapter.layer: adapter.dropout for adapter in adapters}
        self.start: dict[str, tuple[Tensor, Tensor]] = {}
        self.known: dict[str, Tensor] | None = None  # changes(), while the weights stay as they are
        self.names = {
            adapter.layer: (adapter.name.format("lora_A"), adapter.name.format("lora_B")) for adapter in adapters
        }
        for adapter in adapters:
            first = adapter.a.detach().to(self.dtype), adapter.b.detach().to(self.dtype)
            for name, value in zip(self.names[adapter.layer], first, strict=True):
                _plant(self, name, nn.Parameter(value.clone()))
            if bool(first[1].any()):
                self.start[adapter.layer] = first
        self.know_parameters()
        trained = (self.get_parameter(name) for pair in self.names.values() for name in pair)
        self.left_out = LeftOut(trained) if tangents.num_left_out else None

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Those that do anything: accelerate looks through them in every step, and this tree's have nothing to find."""
        yield self
        yield from self.head.modules()  # without the argument, which older torch does not know

    def train(self, mode: bool = True) -> "TangentModel":
        """Only the head behaves otherwise while training: no walk through the tree in every step."""
        self.training = mode
        self.head.train(mode)
        return self

    def relinearise(self, tangents: Tangents, growth: Growth | None = None) -> None:
        """Go on with tangents that were taken at the weights where this model is now: ``dW`` counts from here."""
        self.tangents, self.growth = tangents, growth
        with torch.no_grad():
            self.start = {
                adapter.layer: tuple(factor.clone() for factor in self.factors(adapter))  # type: ignore[misc]
                for adapter in self.adapters.values()
            }

    def factors(self, adapter: Adapter) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """The current A and B of an adapter."""
        a, b = self.names[adapter.layer]
        return self.get_parameter(a), self.get_parameter(b)

    def changes(self, since: Factors | None = None) -> dict[str, Float[Tensor, ""]]:
        """Frobenius norm of every adapted layer's change since these factors, by default since the tangents' own."""
        if self.known is not None and (since is None or since is self.start):
            return self.known
        weights = self.weights()
        return change_norms([weights if since is None else replace(weights, start=since)])[0]

    def weights(self, values: Mapping[str, Tensor] | None = None) -> Weights:
        """The factors as they are now, or among other values of the parameters by name; with dropout in training."""
        values = dict(self.named_parameters()) if values is None else values
        return Weights(
            now={layer: (values[a], values[b]) for layer, (a, b) in self.names.items()},
            start=self.start,
            scalings=self.scalings,
            dropouts=self.dropouts if self.training else {},
        )

    def coordinates(self, examples: Int[Tensor, " b"]) -> Float[Tensor, "b q"]:
        """Change of the features' coordinates."""
        return self.grown(along_tangents(self.tangents, examples, [self.weights()], self.dtype).squeeze(2))

    def grown(
        self, change: Float[Tensor, "b q"], norms: Mapping[str, Float[Tensor, ""]] | None = None
    ) -> Float[Tensor, "b q"]:
        """A change along the tangents, with what layers multiply of each other: by these norms, or ``changes`` now."""
        if self.growth is None:
            return change
        return change * self.growth.factor(self.changes() if norms is None else norms).to(self.dtype)

    def outputs_with(
        self, values: Mapping[str, Tensor], examples: Int[Tensor, " b"], change: Float[Tensor, "b q"]
    ) -> Float[Tensor, "b c"]:
        """Outputs with other values of the parameters, by name, given the change of the features' coordinates."""
        head = {name: values[f"head.{name}"] for name, _ in self.head.named_parameters()}
        return functional_call(self.head, head, (self._features(examples, change),))

    def _features(self, examples: Int[Tensor, " b"], change: Float[Tensor, "b q"]) -> Float[Tensor, "b d"]:
        """The features, given the change of their coordinates."""
        tangents = self.tangents
        basis = tangents.directions(tangents.basis, examples).to(self.dtype)
        features = tangents.features[examples].to(self.dtype)
        if self.growth is not None and len(tangents.normalisation):
            gain, offset = tangents.normalisation.to(self.dtype)
            return bounded(features, change, basis, gain, offset, tangents.num_left_out)
        return features + moved(change, basis)

    def forward(self, index: Int[Tensor, " b"], labels: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        """Outputs of the numbered examples and, given labels, their mean loss."""
        return self.moved(index, self.coordinates(index), labels)

    def moved(
        self, index: Int[Tensor, " b"], change: Float[Tensor, "b q"], labels: Tensor | None
    ) -> SequenceClassifierOutput:
        """The same, given the change of the features' coordinates."""
        features, tangents = self._features(index, change), self.tangents
        if self.left_out:
            self.left_out.watch(features, *(tangents.directions(q, index) for q in (tangents.basis, tangents.span)))
        logits = self.head(features)
        loss = None if labels is None else mean_loss(self.tangents.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def mean_loss(loss: str, logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, ""]:
    """Mean loss over a batch, as transformers' classifiers compute it."""
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, making the modules on the way."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
