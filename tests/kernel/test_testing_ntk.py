"""``foretune.testing.ntk``, compared with reference Jacobians."""

from typing import Any

import pytest
import torch
from cases import lora_config, lora_model, randomise, twice_model
from helpers import KINDS, tiny_batch, tiny_model
from peft import AdaLoraConfig, IA3Config, LoHaConfig, LoraConfig, PeftConfig, get_peft_model
from torch import nn
from torch.testing import assert_close
from transformers import GPT2Config, GPT2LMHeadModel

from foretune.errors import InputError
from foretune.tangents.reference import jacobian, kernel
from foretune.testing import ntk

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("kind", [*KINDS, "twice"])
def test_the_ntk_equals_the_reference(kind: str, trained: bool) -> None:
    model = twice_model(trained) if kind == "twice" else lora_model(kind, trained)
    batch = tiny_batch("roberta" if kind == "twice" else kind)
    result = ntk(model, batch)
    assert_close(result, kernel(jacobian(model, batch)), **EXACT)
    assert result.dtype == torch.float64 and result.shape == (12, 12)


@pytest.mark.parametrize("changes", [{"use_rslora": True}, {"rank_pattern": {"query": 3}}])
def test_scalings_and_ranks_are_those_of_peft(changes: dict[str, Any]) -> None:
    model, batch = lora_model("bert", True, **changes), tiny_batch("bert")
    assert_close(ntk(model, batch), kernel(jacobian(model, batch)), **EXACT)


def test_active_adapters_are_summed() -> None:
    model: Any = lora_model("bert", True)
    batch = tiny_batch("bert")
    model.add_adapter("second", lora_config("bert", r=3, target_modules=["query"], modules_to_save=None))
    model.add_adapter("inactive", lora_config("bert", modules_to_save=None))
    randomise(model, "second", seed=7)
    model.base_model.set_adapter(["default", "second"])
    result = ntk(model, batch)
    assert_close(result, kernel(jacobian(model, batch)), **EXACT)
    model.base_model.set_adapter(["default"])
    assert not torch.allclose(result, ntk(model, batch))


def test_the_model_is_left_unchanged() -> None:
    model: Any = lora_model("bert", True, lora_dropout=0.5, attn_implementation="eager")
    without_dropout, batch = ntk(model, tiny_batch("bert")), tiny_batch("bert")
    model.train()
    model.base_model.model.bert.embeddings.eval()
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    modes = [module.training for module in model.modules()]
    assert_close(ntk(model, batch), without_dropout, **EXACT)
    assert [module.training for module in model.modules()] == modes
    for name, parameter in model.named_parameters():
        assert parameter.grad is None and parameter.requires_grad == before[name][0]
        assert torch.equal(parameter, before[name][1])
    assert not any(module._forward_hooks for module in model.modules())


def test_the_ntk_does_not_depend_on_attention_padding_and_order() -> None:
    single: dict[str, Any] = {
        "rtol": 1e-3,
        "atol": 1e-3,
    }  # LLaMA computes norms, rotations and eager softmax in float32
    batch, model = tiny_batch("llama"), lora_model("llama", True)
    expected = ntk(model, batch)
    assert_close(ntk(lora_model("llama", True, attn_implementation="eager"), batch), expected, **single)
    text = {name: batch[name] for name in ("input_ids", "attention_mask")}
    wider = {name: nn.functional.pad(value, (0, 5)) for name, value in text.items()}
    assert_close(ntk(model, wider), expected, **single)
    shifts = (batch["attention_mask"] == 0).sum(1).tolist()
    left = {
        name: torch.stack([row.roll(shift) for row, shift in zip(value, shifts, strict=True)])
        for name, value in text.items()
    }
    assert_close(ntk(model, left), expected, **single)
    order = torch.tensor([2, 0, 3, 1])
    shuffled = ntk(model, {name: value[order] for name, value in text.items()})
    entries = (order[:, None] * 3 + torch.arange(3)).flatten()
    assert_close(shuffled, expected[entries][:, entries], **single)


def test_the_kernel_of_a_linear_model_is_x_xt() -> None:
    # logits W x with the adapter on W itself: J_B = s A x, and with A the identity K = (s² X X') ⊗ I
    x = torch.randn(5, 4, dtype=torch.float64)

    class Linear(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> Any:
            return type("Output", (), {"logits": self.map(x)})

    linear: Any = Linear().double()
    model: Any = get_peft_model(linear, LoraConfig(r=4, lora_alpha=8, target_modules=["map"]))
    model.double()
    with torch.no_grad():
        model.base_model.model.map.lora_A["default"].weight.copy_(torch.eye(4))
    assert_close(ntk(model, {"x": x}), 4 * torch.kron(x @ x.T, torch.eye(3, dtype=torch.float64)), **EXACT)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_lower_precisions_are_close(dtype: torch.dtype, tolerance: float) -> None:
    batch = tiny_batch("bert")
    exact, result = ntk(lora_model("bert", True), batch), ntk(lora_model("bert", True, dtype=dtype), batch)
    assert result.dtype == dtype
    assert float((result.double() - exact).norm() / exact.norm()) < tolerance


@pytest.mark.parametrize("case", ["merged", "disabled", "none"])
def test_missing_merged_and_disabled_adapters_are_an_error(case: str) -> None:
    model: Any = lora_model("bert")
    if case == "merged":
        model.merge_adapter()
    elif case == "disabled":
        model.base_model.disable_adapter_layers()
    else:
        model = tiny_model("bert")
    with pytest.raises(InputError, match=r"merged or disabled|no active LoRA"):
        unchecked: Any = getattr(ntk, "__wrapped__", ntk)  # without the run-time check of annotations
        unchecked(model, tiny_batch("bert"))


def test_all_unsupported_layers_are_named_in_one_message() -> None:
    config = lora_config("bert", target_modules=["word_embeddings", "position_embeddings"])
    model = get_peft_model(tiny_model("bert"), config)
    with pytest.raises(InputError, match=r"word_embeddings.*position_embeddings"):
        ntk(model, tiny_batch("bert"))
    dora = get_peft_model(tiny_model("bert"), lora_config("bert", use_dora=True))
    with pytest.raises(InputError, match=r"Dora.*layer\.\{0-1\}\.attention.*layer\.\{0-1\}\.output"):
        ntk(dora, tiny_batch("bert"))


@pytest.mark.parametrize(
    ("config", "name"),
    [
        (LoHaConfig(target_modules=["query"]), "loha"),
        (IA3Config(target_modules=["query"], feedforward_modules=[]), "ia3"),
        (AdaLoraConfig(target_modules=["query"], total_step=10), "AdaLoRA"),
    ],
    ids=["loha", "ia3", "adalora"],
)
def test_methods_other_than_lora_are_named(config: PeftConfig, name: str) -> None:
    model: Any = get_peft_model(tiny_model("bert"), config)
    with pytest.raises(
        InputError, match=rf"does not support these adapters: {name} \(bert\.encoder\.layer\.\{{0-1\}}\.attention"
    ):
        ntk(model, tiny_batch("bert"))


def test_a_model_with_an_output_per_token_is_an_error() -> None:
    model: Any = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_positions=40, n_embd=16, n_layer=1, n_head=2))
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=["c_attn"], fan_in_fan_out=True))
    with pytest.raises(InputError, match=r"GPT2LMHeadModel has outputs of shape .*AutoModelForSequenceClassification"):
        ntk(adapted, tiny_batch("gpt2"))
