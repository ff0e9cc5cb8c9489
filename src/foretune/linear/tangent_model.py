"""The weight-space tangent model: a fine-tune in which only the adapters and the head are computed.

``f(x) = head(h0(x) + Q' t(x))`` with ``t_q(x) = sum_m sum_t g_mqt' dW_m a_mt`` and ``dW = s (B A - B0 A0)``
(theory.md section 6): linear in the weights' change, bilinear in the adapters' factors, exact in the head.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
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
        trainable_head: Whether it is trained.

    Raises:
        ValueError: An adapted layer has no tangents.
    """

    def __init__(
        self,
        tangents: Tangents,
        adapters: Sequence[Adapter],
        head: Head,
        *,
        accepts_loss_kwargs: bool = False,
    ) -> None:
        super().__init__()
        missing = sorted({adapter.layer for adapter in adapters} - set(tangents.layers))
        if missing:
            raise ValueError(f"no tangents of {', '.join(missing)}: collect them with modules={missing!r}")
        self.tangents, self.adapters = tangents, tuple(adapters)
        self.accepts_loss_kwargs = accepts_loss_kwargs
        self.head = head.to(torch.float32)
        for adapter in adapters:
            for letter, value in (("A", adapter.a), ("B", adapter.b)):
                _plant(
                    self, adapter.name.format(f"lora_{letter}"), nn.Parameter(value.detach().float().clone())
                )
        self.start = {
            a.layer: (a.b.detach().float() @ a.a.detach().float()) for a in adapters if bool(a.b.any())
        }

    def factors(self, adapter: Adapter) -> tuple[Float[Tensor, "r i"], Float[Tensor, "o r"]]:
        """The current A and B of an adapter."""
        return self.get_parameter(adapter.name.format("lora_A")), self.get_parameter(
            adapter.name.format("lora_B")
        )

    def coordinates(self, examples: Int[Tensor, "b"]) -> Float[Tensor, "b q"]:
        """First-order change of the features' coordinates, one pass over the examples' rows."""
        tangents = self.tangents
        by_layer = {adapter.layer: adapter for adapter in self.adapters}
        rows: dict[int | None, tuple[Tensor, Tensor]] = {}
        inputs: dict[int, Tensor] = {}
        change = torch.zeros(len(examples), tangents.num_directions)
        for number, entry in enumerate(tangents.entries):
            adapter = by_layer.get(entry.layer)
            if adapter is None:
                continue
            if entry.rows_per_example not in rows:
                rows[entry.rows_per_example] = tangents.rows(examples, entry.rows_per_example)
            chosen, owner = rows[entry.rows_per_example]
            if entry.inputs not in inputs:
                inputs[entry.inputs] = tangents.inputs(number)[chosen].float()
            entered, gradients = inputs[entry.inputs], tangents.gradients(number)[chosen].float()
            a, b = self.factors(adapter)
            down = (
                nn.functional.dropout(entered, adapter.dropout, self.training) @ (adapter.scaling * a).T
            )  # (rows, r)
            change = change.index_add(0, owner, _bilinear(gradients, b, down))
            if entry.layer in self.start:
                fixed = torch.einsum(
                    "nqo,oi,ni->nq", gradients, adapter.scaling * self.start[entry.layer], entered
                )
                change = change.index_add(0, owner, -fixed)
        return change

    def forward(
        self, index: Int[Tensor, "b"], labels: Tensor | None = None, **_: object
    ) -> SequenceClassifierOutput:
        """Outputs of the numbered examples and, given labels, their mean loss."""
        tangents = self.tangents
        basis = tangents.basis[index if len(tangents.basis) > 1 else [0]].float()
        shift = torch.einsum("bq,bqd->bd", self.coordinates(index), basis.expand(len(index), -1, -1))
        logits = self.head(tangents.features[index].float() + shift)
        return SequenceClassifierOutput(
            loss=None if labels is None else self.loss(logits, labels), logits=logits
        )

    def loss(self, logits: Float[Tensor, "b c"], labels: Tensor) -> Float[Tensor, ""]:
        """Mean loss, as transformers' classifiers compute it."""
        if self.tangents.loss == "cross_entropy":
            return nn.functional.cross_entropy(logits, labels)
        return nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))


def _bilinear(
    gradients: Float[Tensor, "rows q o"], b: Float[Tensor, "o r"], down: Float[Tensor, "rows r"]
) -> Float[Tensor, "rows q"]:
    return torch.einsum("nqr,nr->nq", gradients @ b, down)


def _plant(root: nn.Module, path: str, parameter: nn.Parameter) -> None:
    """Register a parameter under a dotted name, making the modules on the way."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in root._modules:
            root.add_module(folder, nn.Module())
        root = root._modules[folder]  # type: ignore[assignment]
    root.register_parameter(name, parameter)
