"""The weight-space tangent model: a stand-in for the network that computes only the adapters and the head.

``f(x) = head(h0(x) + Q' t(x))`` with ``t_q(x) = sum_m sum_t g_mqt' dW_m a_mt`` and ``dW = s (B A - B0 A0)``
(docs/theory.md section 6). h0 are the features before training, Q a basis of feature directions, a_mt the input of
layer m for token t, and g_mqt the gradient of direction q at that layer's output. The model is linear in the change of
the weights dW, bilinear in the factors A and B, and exact in the head.

Two estimates are added. With a ``Growth`` the features change further than their tangents say, because layers multiply
each other's changes; the network's last normalisation limits that. And the gradients of the adapters get noise for
feature directions without tangents (``foretune.linear.left_out``).
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
    """A stand-in for the adapted network. It takes indices of examples and returns the outputs and the loss.

    Its parameters have the same names and the same order as in the peft model, so ``Trainer`` groups, decays and clips
    them in the same way.

    Args:
        tangents: The tangents of the network for all examples.
        adapters: The adapters at the start of training. Copies of their factors are trained.
        head: The head at the start of training. It is trained.
        config: The network's config, for ``Trainer``.
        accepts_loss_kwargs: Whether the model, and not ``Trainer``, averages the loss over accumulated batches.
        growth: How much further features change than their tangents say. By default they follow the tangents.

    Raises:
        ValueError: An adapted layer has no tangents, or has several adapters.
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
            raise ValueError(f"there are no tangents of {', '.join(missing)}: collect them with modules={missing!r}")
        self.tangents, self.growth = tangents, growth
        self.adapters = {adapter.layer: adapter for adapter in adapters}
        if len(self.adapters) < len(adapters):
            raise ValueError("a layer has several adapters: train them one at a time")
        self.config, self.accepts_loss_kwargs = config, accepts_loss_kwargs  # Trainer reads both
        self.dtype = torch.promote_types(tangents.dtype, torch.float32)
        self.scalings = {adapter.layer: adapter.scaling for adapter in adapters}
        self.dropouts = {adapter.layer: adapter.dropout for adapter in adapters}
        self.start: dict[str, tuple[Tensor, Tensor]] = {}
        self.known: dict[str, Tensor] | None = None  # the value of changes() until the weights change
        self.names = {
            adapter.layer: (adapter.name.format("lora_A"), adapter.name.format("lora_B")) for adapter in adapters
        }
        for adapter in adapters:
            first = adapter.a.detach().to(self.dtype), adapter.b.detach().to(self.dtype)
            for name, value in zip(self.names[adapter.layer], first, strict=True):
                _plant(self, name, nn.Parameter(value.clone()))
            if bool(first[1].any()):
                self.start[adapter.layer] = first
        self.head = head.to(self.dtype)  # after the adapters, as in the peft model
        self.know_parameters()
        trained = (self.get_parameter(name) for pair in self.names.values() for name in pair)
        self.left_out = LeftOut(trained) if tangents.num_left_out else None

    def modules(self, remove_duplicate: bool = True) -> Iterator[nn.Module]:
        """Yield only this module and the head's modules.

        accelerate searches all modules in every step. The other modules of this tree only hold parameters, so searching
        them would cost time and find nothing.
        """
        yield self
        yield from self.head.modules()  # older versions of torch do not have the argument

    def train(self, mode: bool = True) -> "TangentModel":
        """Set the training mode of this module and of the head. No other module depends on it."""
        self.training = mode
        self.head.train(mode)
        return self

    def relinearise(self, tangents: Tangents, growth: Growth | None = None) -> None:
        """Continue with tangents that were collected at the current weights. ``dW`` is counted from these weights.

        Args:
            tangents: The new tangents.
            growth: The growth to use with them.
        """
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
        """The Frobenius norm of the change of every adapted layer's weight.

        Args:
            since: The factors from which the change is counted. By default these are the factors at which the tangents
                were collected.
        """
        if self.known is not None and (since is None or since is self.start):
            return self.known
        weights = self.weights()
        return change_norms([weights if since is None else replace(weights, start=since)])[0]

    def weights(self, values: Mapping[str, Tensor] | None = None) -> Weights:
        """The factors of the adapters, with their dropout while training.

        Args:
            values: Values of the parameters by name. By default these are the current values.
        """
        values = dict(self.named_parameters()) if values is None else values
        return Weights(
            now={layer: (values[a], values[b]) for layer, (a, b) in self.names.items()},
            start=self.start,
            scalings=self.scalings,
            dropouts=self.dropouts if self.training else {},
        )

    def coordinates(self, examples: Int[Tensor, " b"]) -> Float[Tensor, "b q"]:
        """How far the features of the examples have moved, in coordinates of the basis."""
        return self.grown(along_tangents(self.tangents, examples, [self.weights()], self.dtype).squeeze(2))

    def grown(
        self, change: Float[Tensor, "b q"], norms: Mapping[str, Float[Tensor, ""]] | None = None
    ) -> Float[Tensor, "b q"]:
        """Scale a change along the tangents by the growth.

        Args:
            change: The change.
            norms: The norms of the layers' changes. By default these are the current ones, from :meth:`changes`.
        """
        if self.growth is None:
            return change
        return change * self.growth.factor(self.changes() if norms is None else norms).to(self.dtype)

    def outputs_with(
        self, values: Mapping[str, Tensor], examples: Int[Tensor, " b"], change: Float[Tensor, "b q"]
    ) -> Float[Tensor, "b c"]:
        """Outputs for other values of the parameters.

        Args:
            values: Values of the parameters by name.
            examples: Indices of the examples.
            change: The change of the features' coordinates for these values.
        """
        head = {name: values[f"head.{name}"] for name, _ in self.head.named_parameters()}
        return functional_call(self.head, head, (self._features(examples, change),))

    def _features(self, examples: Int[Tensor, " b"], change: Float[Tensor, "b q"]) -> Float[Tensor, "b d"]:
        """The features after a change of their coordinates."""
        tangents = self.tangents
        basis = tangents.directions(tangents.basis, examples).to(self.dtype)
        features = tangents.features[examples].to(self.dtype)
        if self.growth is not None and len(tangents.normalisation):
            gain, offset = tangents.normalisation.to(self.dtype)
            return bounded(features, change, basis, gain, offset, tangents.num_left_out)
        return features + moved(change, basis)

    def forward(self, index: Int[Tensor, " b"], labels: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        """Outputs of the examples with these indices. If labels are given, also their mean loss."""
        return self.moved(index, self.coordinates(index), labels)

    def moved(
        self, index: Int[Tensor, " b"], change: Float[Tensor, "b q"], labels: Tensor | None
    ) -> SequenceClassifierOutput:
        """Outputs and mean loss after a change of the features' coordinates."""
        features, tangents = self._features(index, change), self.tangents
        if self.left_out:
            self.left_out.watch(features, *(tangents.directions(q, index) for q in (tangents.basis, tangents.span)))
        logits = self.head(features)
        loss = None if labels is None else mean_loss(self.tangents.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def mean_loss(loss: str, logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, ""]:
    """The mean loss of a batch, computed as in the classifiers of transformers.

    Args:
        loss: ``cross_entropy`` or ``mean_squared_error``.
        logits: The outputs.
        labels: The labels.
    """
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, and create the modules that the name needs."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
