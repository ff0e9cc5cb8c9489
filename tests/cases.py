"""Tiny models with adapters, tasks and kernels, which the tests of tangents, kernel and linear share."""

from typing import Any

import torch
from datasets import Dataset
from helpers import DEBERTA, PAD, VOCAB, tiny_model, tiny_tokenizer
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.kernel import Kernel
from foretune.task import Task
from foretune.task.task import Loss

HEADS = {
    "llama": ["score"],
    "gpt2": ["score"],
    "distilbert": ["pre_classifier", "classifier"],
    "xlnet": ["sequence_summary", "logits_proj"],
}


def lora_config(kind: str, **changes: Any) -> LoraConfig:
    """LoRA on every linear layer, with a head that is trained in full."""
    options: dict[str, Any] = {
        "r": 2,
        "lora_alpha": 3,
        "target_modules": "all-linear",
        "exclude_modules": r".*(classifier|score|sequence_summary|logits_proj).*",
        "modules_to_save": HEADS.get(kind, ["classifier"]),
    }
    return LoraConfig(**options | changes)


def randomise(model: nn.Module, part: str, seed: int = 5) -> None:
    """Fill the parameters whose names contain ``part`` with noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if part in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)


def lora_model(kind: str, trained: bool = False, **changes: Any) -> PeftModel:
    """A tiny model with adapters; B is 0 unless ``trained``, as after peft's initialisation."""
    options = {name: changes.pop(name) for name in ("dtype", "attn_implementation", *DEBERTA) if name in changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = get_peft_model(tiny_model(kind, **options), lora_config(kind, **changes)).eval()
    if trained:
        randomise(model, "lora_B")
    return model.to(options.get("dtype", torch.float64))


class TwiceModel(nn.Module):
    """A model that runs one linear layer twice and averages over tokens."""

    def __init__(self, width: int = 6, num_labels: int = 3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCAB, width)
        self.shared = nn.Linear(width, width)
        self.other = nn.Linear(width, width)
        self.classifier = nn.Linear(width, num_labels)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **_: object) -> SequenceClassifierOutput:
        hidden = self.embedding(input_ids)
        hidden = torch.tanh(self.shared(hidden)) + self.other(hidden).relu_()  # relu_ changes a layer's output in place
        hidden = torch.tanh(self.shared(hidden))
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return SequenceClassifierOutput(logits=self.classifier((hidden * mask).sum(1) / mask.sum(1)))


def twice_model(trained: bool = False) -> PeftModel:
    """``TwiceModel`` with adapters on ``shared`` and ``other``."""
    config = LoraConfig(r=2, lora_alpha=3, target_modules=["shared", "other"])
    model = get_peft_model(TwiceModel().double(), config).eval()
    if trained:
        randomise(model, "lora_B")
    return model.double()


def tiny_task(
    kind: str,
    n: int = 9,
    num_train: int = 6,
    num_labels: int = 3,
    dtype: torch.dtype = torch.float64,
    padding_side: str = "right",
    order: list[int] | None = None,
    **changes: Any,
) -> Task:
    """A task whose texts have different lengths; ``order`` permutes the training examples."""
    generator = torch.Generator().manual_seed(3)
    loss: Loss = "cross_entropy" if num_labels > 1 else "mean_squared_error"
    rows: list[dict[str, Any]] = []
    for i in range(n):
        label: float = i % num_labels if num_labels > 1 else float(torch.randn((), generator=generator))
        if kind == "vit":
            rows.append({"pixel_values": torch.randn(3, 8, 8, generator=generator).tolist(), "labels": label})
            continue
        length = 4 + (3 * i) % 7
        ids = torch.randint(PAD + 1, VOCAB, (length,), generator=generator).tolist()
        rows.append({"input_ids": ids, "attention_mask": [1] * length, "labels": label})
    train = [rows[i] for i in order or range(num_train)]
    tokenizer = None if kind == "vit" else tiny_tokenizer()
    if tokenizer is not None:
        tokenizer.padding_side = padding_side
    model = tiny_model(kind, dtype=dtype, num_labels=num_labels, **changes)
    return Task(model, tokenizer, Dataset.from_list(train), Dataset.from_list(rows[num_train:]), loss)


def linear_kernel(n: int = 5, m: int = 3, k: int = 2, p: int = 20, seed: int = 0) -> tuple[Kernel, Tensor]:
    """The kernel of a random linear model, and its Jacobian ((n + m) k, p) with the training examples first."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    jacobian = draw((n + m) * k, p) / p**0.5
    loss = "cross_entropy" if k > 1 else "mean_squared_error"
    half = p // 2
    blocks = {
        "first.B": jacobian[:, :half] @ jacobian[: n * k, :half].T,
        "second.B": jacobian[:, half:] @ jacobian[: n * k, half:].T,
    }
    return Kernel(blocks, draw(n + m, k), draw(n + m, k), n, loss), jacobian
