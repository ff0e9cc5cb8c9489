"""The weight-space tangent model: a fine-tune in which only the adapters and the head are computed.

``f(x) = head(h0(x) + Q' t(x))`` with ``t_q(x) = sum_m sum_t g_mqt' dW_m a_mt`` and ``dW = s (B A - B0 A0)``
(theory.md section 6): linear in the weights' change, bilinear in the adapters' factors, exact in the head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.tangents import Adapter, Head, Tangents


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
    ) -> None:
        super().__init__()
        missing = sorted({adapter.layer for adapter in adapters} - set(tangents.layers))
        if missing:
            raise ValueError(f"no tangents of {', '.join(missing)}: collect them with modules={missing!r}")
        self.tangents = tangents
        self.adapters = {adapter.layer: adapter for adapter in adapters}
        if len(self.adapters) < len(adapters):
            raise ValueError("several adapters on one layer: train them one at a time")
        self.config, self.accepts_loss_kwargs = config, accepts_loss_kwargs  # where Trainer looks for them
        self.dtype, self.product = _precision(tangents.dtype)
        self.head = head.to(self.dtype)
        self.start: dict[str, tuple[Tensor, Tensor]] = {}
        for adapter in adapters:
            first = {"A": adapter.a.detach().to(self.dtype), "B": adapter.b.detach().to(self.dtype)}
            for letter, value in first.items():
                _plant(self, adapter.name.format(f"lora_{letter}"), nn.Parameter(value.clone()))
            if bool(first["B"].any()):
                self.start[adapter.layer] = first["A"], first["B"]

    def relinearise(self, tangents: Tangents) -> None:
        """Go on with tangents that were taken at the weights where this model is now: ``dW`` counts from here."""
        self.tangents = tangents
        with torch.no_grad():
            self.start = {
                adapter.layer: tuple(factor.clone() for factor in self.factors(adapter))  # type: ignore[misc]
                for adapter in self.adapters.values()
            }

    def factors(self, adapter: Adapter) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """The current A and B of an adapter."""
        a, b = (self.get_parameter(adapter.name.format(f"lora_{letter}")) for letter in "AB")
        return a, b

    def coordinates(self, examples: Int[Tensor, " b"]) -> Float[Tensor, "b q"]:
        """First-order change of the features' coordinates, in one pass over the examples' rows."""
        tangents = self.tangents
        change = torch.zeros(len(examples), tangents.num_directions, dtype=self.dtype)
        for layout in dict.fromkeys(entry.rows_per_example for entry in tangents.entries):
            rows, owner = tangents.rows(examples, layout)
            groups: dict[int, _Group] = {}  # layers with the same inputs together, by the entry that keeps these
            total = torch.zeros(len(owner), tangents.num_directions, dtype=self.dtype)
            for number, entry in enumerate(tangents.entries):
                if entry.rows_per_example != layout or entry.layer not in self.adapters:
                    continue
                if entry.inputs not in groups:
                    groups[entry.inputs] = _Group(_take(tangents.inputs(number), rows).to(self.product))
                group, adapter = groups[entry.inputs], self.adapters[entry.layer]
                gradients = _take(tangents.gradients(number), rows).to(self.product)
                if adapter.dropout and self.training:  # every layer drops other inputs
                    alone = _Group(nn.functional.dropout(group.inputs, adapter.dropout))
                    alone.add(gradients, adapter.scaling, *self.factors(adapter))
                    total = total + alone.sum()
                else:
                    group.add(gradients, adapter.scaling, *self.factors(adapter))
                if entry.layer in self.start:
                    group.add(gradients, -adapter.scaling, *self.start[entry.layer])
            for group in groups.values():
                total = total + group.sum() if group.factors else total
            change = change.index_add(0, owner, total)
        return change

    def forward(self, index: Int[Tensor, " b"], labels: Tensor | None = None, **_: object) -> SequenceClassifierOutput:
        """Outputs of the numbered examples and, given labels, their mean loss."""
        tangents = self.tangents
        basis = tangents.basis[index if len(tangents.basis) > 1 else [0]].to(self.dtype)
        shift = torch.einsum("bq,bqd->bd", self.coordinates(index), basis.expand(len(index), -1, -1))
        logits = self.head(tangents.features[index].to(self.dtype) + shift)
        loss = None if labels is None else mean_loss(tangents.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def mean_loss(loss: str, logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, ""]:
    """Mean loss over a batch, as transformers' classifiers compute it."""
    if loss == "cross_entropy":
        return nn.functional.cross_entropy(logits, labels)
    return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))


class _Group:
    """Bilinear forms ``sum_k s_k g_kq' B_k A_k a`` of layers k that have the same inputs a."""

    def __init__(self, inputs: Float[Tensor, "rows i"]) -> None:
        self.inputs = inputs
        self.gradients: list[Float[Tensor, "rows q o"]] = []
        self.scalings: list[float] = []
        self.factors: list[Tensor] = []

    def add(
        self, gradients: Float[Tensor, "rows q o"], scaling: float, a: Float[Tensor, "r i"], b: Float[Tensor, "o r"]
    ) -> None:
        """One more layer."""
        self.gradients.append(gradients)
        self.scalings.append(scaling)
        self.factors += [a, b]

    def sum(self) -> Float[Tensor, "rows q"]:
        """The sum over the layers, for every row."""
        return _Bilinear.apply(self.inputs, self.gradients, self.scalings, *self.factors)


class _Bilinear(torch.autograd.Function):
    """A ``_Group``'s sum for many rows: thin products of long matrices, each read once forward and once back.

    Products are taken in the rows' own type, sums over r in the factors'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Float[Tensor, "rows i"],
        gradients: list[Float[Tensor, "rows q o"]],
        scalings: list[float],
        *factors: Tensor,
    ) -> Float[Tensor, "rows q"]:
        """The sum of bilinear forms of every row; factors are A and B of each layer in turn."""
        kept, ranks = factors[0].dtype, [len(a) for a in factors[::2]]
        down = (inputs @ torch.cat(factors[::2]).to(inputs.dtype).T).to(kept).split(ranks, 1)  # (rows, r) each
        up = [
            (g.flatten(0, 1) @ b.to(g.dtype)).to(kept).view(*g.shape[:2], -1).mul_(scaling)  # (rows, q, r)
            for g, b, scaling in zip(gradients, factors[1::2], scalings, strict=True)
        ]
        ctx.inputs, ctx.gradients, ctx.scalings, ctx.down, ctx.up = inputs, gradients, scalings, down, up
        return torch.stack([(d.unsqueeze(1) * u).sum(2) for d, u in zip(down, up, strict=True)]).sum(0)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the factors."""
        outer = grads[0].unsqueeze(2)  # (rows, q, 1)
        weights = torch.cat([(outer * up).sum(1) for up in ctx.up], 1).to(ctx.inputs.dtype)
        grad_a = (weights.T @ ctx.inputs).to(outer.dtype).split([up.shape[2] for up in ctx.up])
        found: list[Tensor] = []
        for a, gradients, scaling, down in zip(grad_a, ctx.gradients, ctx.scalings, ctx.down, strict=True):
            mixed = (scaling * outer * down.unsqueeze(1)).flatten(0, 1).to(gradients.dtype)
            found += [a, (mixed.T @ gradients.flatten(0, 1)).to(outer.dtype).T]
        return None, None, None, *found


def _take(values: Tensor, rows: Int[Tensor, " rows"] | slice) -> Tensor:
    """Some rows, without a copy where they lie together."""
    return values[rows] if isinstance(rows, slice) else values.index_select(0, rows)


def _precision(stored: torch.dtype) -> tuple[torch.dtype, torch.dtype]:
    """Types of parameters and sums, and of the long products, for rows stored in a type.

    Half-precision rows are multiplied as they are where the processor can, else in single precision.
    """
    if stored == torch.float64:
        return torch.float64, torch.float64
    fast = stored == torch.bfloat16 and torch.cpu._is_avx512_bf16_supported()
    return torch.float32, torch.bfloat16 if fast else torch.float32


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, making the modules on the way."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
