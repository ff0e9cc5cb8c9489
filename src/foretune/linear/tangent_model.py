"""The weight-space tangent model: a fine-tune in which only the adapters and the head are computed.

``f(x) = head(h0(x) + Q' t(x))`` with ``t_q(x) = sum_m sum_t g_mqt' dW_m a_mt`` and ``dW = s (B A - B0 A0)``
(theory.md section 6): linear in the weights' change, bilinear in the adapters' factors, exact in the head. With a
``Growth`` the features change by as much more as the layers multiply each other, and no further than the network's last
normalisation lets them; of directions that were not taken the adapters get noise (``foretune.linear.left_out``). These
are estimates.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.linear.bilinear import Bilinear
from foretune.linear.growth import Factors, Growth, bounded, change_norms, moved
from foretune.linear.left_out import LeftOut
from foretune.tangents import Adapter, Head, Tangents, product_dtype

AT_ONCE = 2**21  # numbers that are held on the way to a change of the features
_Factors = dict[str, tuple[Float[Tensor, "k r i"], Float[Tensor, "k o r"]]]  # of every adapted layer


class TangentModel(nn.Module):
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
        self.dtype, self.product = torch.promote_types(tangents.dtype, torch.float32), product_dtype(tangents.dtype)
        self.head = head.to(self.dtype)
        self.start: dict[str, tuple[Tensor, Tensor]] = {}
        self.names = {
            adapter.layer: (adapter.name.format("lora_A"), adapter.name.format("lora_B")) for adapter in adapters
        }
        for adapter in adapters:
            first = adapter.a.detach().to(self.dtype), adapter.b.detach().to(self.dtype)
            for name, value in zip(self.names[adapter.layer], first, strict=True):
                _plant(self, name, nn.Parameter(value.clone()))
            if bool(first[1].any()):
                self.start[adapter.layer] = first
        self._known = tuple(super().named_parameters())
        trained = (self.get_parameter(name) for pair in self.names.values() for name in pair)
        self.left_out = LeftOut(trained) if tangents.num_left_out else None

    def named_parameters(
        self, prefix: str = "", recurse: bool = True, remove_duplicate: bool = True
    ) -> Iterator[tuple[str, nn.Parameter]]:
        """As of any module, without a walk, thrice in every step, through a tree as deep as the peft model's."""
        if prefix or not recurse:
            return super().named_parameters(prefix, recurse, remove_duplicate)
        return iter(self._known)

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

    def changes(self, since: Factors | None = None) -> dict[str, Float[Tensor, " 1"]]:
        """Frobenius norm of every adapted layer's change since these factors, by default since the tangents' own."""
        return self._changes(self._stacked([dict(self.named_parameters())]), self.start if since is None else since)

    def _changes(self, factors: _Factors, since: Factors) -> dict[str, Float[Tensor, " k"]]:
        return change_norms(factors, since, {layer: each.scaling for layer, each in self.adapters.items()})

    def coordinates(self, examples: Int[Tensor, " b"]) -> Float[Tensor, "b q"]:
        """Change of the features' coordinates."""
        factors = self._stacked([dict(self.named_parameters())])
        return (self._along_tangents(examples, factors) * self._grown(factors)).squeeze(2)

    def outputs_at(self, moments: Sequence[Mapping[str, Tensor]], batches: Iterable[Tensor]) -> Iterator[list[Tensor]]:
        """Outputs (b c) of each batch (b) with the parameters, by name, of several moments; rows are read once."""
        factors = self._stacked(moments)
        grown = self._grown(factors)
        heads = [
            {name.removeprefix("head."): value for name, value in values.items() if name.startswith("head.")}
            for values in moments
        ]
        for examples in batches:
            changes = (self._along_tangents(examples, factors) * grown).unbind(2)
            yield [
                functional_call(self.head, head, (self._features(examples, change),))
                for head, change in zip(heads, changes, strict=True)
            ]

    def _stacked(self, moments: Sequence[Mapping[str, Tensor]]) -> _Factors:
        """Factors A and B of every adapter at several moments."""
        if len(moments) == 1:  # as in a step, which needs no copies
            (now,) = moments
            return {layer: (now[a].unsqueeze(0), now[b].unsqueeze(0)) for layer, (a, b) in self.names.items()}
        return {
            layer: (torch.stack([values[a] for values in moments]), torch.stack([values[b] for values in moments]))
            for layer, (a, b) in self.names.items()
        }

    def _grown(self, factors: _Factors) -> Float[Tensor, " k"]:
        """What changes along the tangents are multiplied by."""
        if self.growth is None:
            return torch.ones(len(next(iter(factors.values()))[0]), dtype=self.dtype)
        return self.growth.factor(self._changes(factors, self.start)).to(self.dtype)

    def _along_tangents(self, examples: Int[Tensor, " b"], factors: _Factors) -> Float[Tensor, "b q k"]:
        """Changes with k pairs of factors for every adapter, in one pass over the examples' rows."""
        tangents, count = self.tangents, len(next(iter(factors.values()))[0])
        shape = tangents.num_directions, count
        change = torch.zeros(len(examples), *shape, dtype=self.dtype)
        read = [
            (number, entry)
            for number, entry in enumerate(tangents.entries)
            if entry.simulated and entry.layer in self.adapters
        ]
        for layout in dict.fromkeys(entry.rows_per_example for _, entry in read):
            rows, owner = tangents.rows(examples, layout)
            forms, inputs = Bilinear(), {}
            for number, entry in read:
                if entry.rows_per_example != layout:
                    continue
                if entry.inputs not in inputs:
                    inputs[entry.inputs] = _take(tangents.inputs(number), rows).to(self.product)
                given, adapter = inputs[entry.inputs], self.adapters[entry.layer]
                gradients = _take(tangents.gradients(number), rows).to(self.product)
                if entry.layer in self.start:
                    first = (factor.expand(count, -1, -1) for factor in self.start[entry.layer])
                    forms.add(given, gradients, -adapter.scaling, *first)
                if adapter.dropout and self.training:  # every layer drops other inputs
                    given = nn.functional.dropout(given, adapter.dropout)
                forms.add(given, gradients, adapter.scaling, *factors[entry.layer])
                if forms.size > AT_ONCE:
                    change, forms = change.index_add(0, owner, forms.sum()), Bilinear()
            if forms.size:
                change = change.index_add(0, owner, forms.sum())
        return change

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
        features, tangents = self._features(index, self.coordinates(index)), self.tangents
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


def _take(values: Tensor, rows: Int[Tensor, " rows"] | slice) -> Tensor:
    """Some rows, without a copy where they lie together."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, making the modules on the way."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
