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
        ValueError: An adapted layer has no tangents.
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
            inputs: dict[int, Tensor] = {}
            total = torch.zeros(len(owner), tangents.num_directions, dtype=self.dtype)
            for number, entry in enumerate(tangents.entries):
                if entry.rows_per_example != layout or entry.layer not in self.adapters:
                    continue
                if entry.inputs not in inputs:
                    inputs[entry.inputs] = _take(tangents.inputs(number), rows).to(self.product)
                entered = inputs[entry.inputs]
                gradients = _take(tangents.gradients(number), rows).to(self.product)
                adapter = self.adapters[entry.layer]
                dropped = nn.functional.dropout(entered, adapter.dropout, self.training)
                total = total + adapter.scaling * _Bilinear.apply(dropped, gradients, *self.factors(adapter))
                if entry.layer in self.start:
                    total = total - adapter.scaling * _Bilinear.apply(entered, gradients, *self.start[entry.layer])
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


class _Bilinear(torch.autograd.Function):
    """``t_nq = g_nq' B A a_n`` for many rows: thin products of long matrices, each read once forward and once back.

    Products are taken in the rows' own type, sums over r in the factors'.
    """

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Float[Tensor, "rows i"],
        gradients: Float[Tensor, "rows q o"],
        a: Float[Tensor, "r i"],
        b: Float[Tensor, "o r"],
    ) -> Float[Tensor, "rows q"]:
        """The bilinear form of every row."""
        down = (inputs @ a.to(inputs.dtype).T).to(a.dtype)  # (rows, r)
        up = (gradients.flatten(0, 1) @ b.to(inputs.dtype)).to(b.dtype).view(*gradients.shape[:2], -1)  # (rows, q, r)
        ctx.save_for_backward(inputs, gradients, down, up)
        return (down.unsqueeze(1) * up).sum(2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None, Tensor, Tensor]:
        """Gradients of the factors."""
        inputs, gradients, down, up = ctx.saved_tensors
        outer = grads[0].unsqueeze(2)  # (rows, q, 1)
        grad_a = (outer * up).sum(1).to(inputs.dtype).T @ inputs
        grad_b = (outer * down.unsqueeze(1)).flatten(0, 1).to(inputs.dtype).T @ gradients.flatten(0, 1)
        return None, None, grad_a.to(down.dtype), grad_b.to(down.dtype).T


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
