"""The linearised model, compared in float64 with forward-mode derivatives of the same model with plain attention."""

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import TwiceModel, lora_config, lora_model, tiny_task, twice_model
from helpers import KINDS, tiny_batch, tiny_model
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSequenceClassification, Trainer, TrainingArguments

from foretune.errors import InputError
from foretune.kernel import ntk
from foretune.linear import gradient_descent, linearise, ridge
from foretune.tangents import centring, collect, read_adapters

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-10}
MODELS = [*KINDS, "twice"]


def build(kind: str, trained: bool = False, **changes: Any) -> nn.Module:
    torch.manual_seed(0)
    return twice_model(trained) if kind == "twice" else lora_model(kind, trained, **changes)


def batch_of(kind: str) -> dict[str, Tensor]:
    return tiny_batch("roberta" if kind == "twice" else kind)


def trained_values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def move(model: nn.Module, seed: int = 7) -> None:
    """Move the trained parameters by as much as their own size, so that a missing term shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 5)


def outputs(model: nn.Module, batch: dict[str, Tensor]) -> Callable[[dict[str, Tensor]], Tensor]:
    """Logits as a function of the parameters, with attention that PyTorch can differentiate in forward mode."""
    inputs = {name: value for name, value in batch.items() if name != "labels"}

    def function(theta: dict[str, Tensor]) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(model, theta, (), inputs).logits

    return function


def reference_attention(kind: str) -> str:
    return "sdpa" if kind in {"llama", "vit"} else "eager"  # their eager attention computes softmax in float32


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("kind", MODELS)
def test_outputs_and_gradients_equal_forward_mode_derivatives(kind: str, trained: bool) -> None:
    model, batch = build(kind, trained), batch_of(kind)
    reference = outputs(build(kind, trained, attn_implementation=reference_attention(kind)), batch)
    start = trained_values(model)
    linear = linearise(model)
    assert torch.equal(linear(**batch).logits, model(**batch).logits)  # at θ0
    move(model)
    delta = {name: value - start[name] for name, value in trained_values(model).items()}
    result = linear(**batch).logits
    assert_close(result, sum(jvp(reference, (start,), (delta,))), **EXACT)
    assert float((model(**batch).logits - result).detach().abs().max()) > 1e-3  # the model has left its linear range
    u = torch.randn(result.shape, dtype=torch.float64)
    gradients = torch.autograd.grad(result, list(_theta(linear).values()), u)
    expected = torch.func.vjp(reference, start)[1](u)[0]
    for name, gradient in zip(_theta(linear), gradients, strict=True):
        assert_close(gradient, expected[name], **EXACT)


def test_the_jacobian_equals_the_reference() -> None:
    model, batch = lora_model("bert", True), tiny_batch("bert")
    reference, start = outputs(lora_model("bert", True, attn_implementation="eager"), batch), trained_values(model)
    linear = linearise(model)
    move(model)
    expected = torch.cat([part.flatten(2) for part in jacrev(reference)(start).values()], 2)
    f0, rows = linear.jacobian(batch)
    assert_close(f0, reference(start), **EXACT)
    assert_close(rows, expected, **EXACT)
    f0, rows = linear.jacobian(batch, centred=True)
    assert_close(f0, reference(start) @ centring(3).T, **EXACT)
    assert_close(rows, torch.einsum("kc,ncp->nkp", centring(3), expected), **EXACT)
    assert_close(linear(**batch).logits, reference(start) + expected @ linear.displacement(), **EXACT)


def _theta(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("kind", ["bert", "llama", "vit"])
def test_any_parameters_of_a_model_without_adapters_can_be_trained(kind: str) -> None:
    model, batch = tiny_model(kind), tiny_batch(kind)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("layers.1" in name or "layer.1" in name or "norm" in name.lower())
    reference, start = (
        outputs(tiny_model(kind, attn_implementation=reference_attention(kind)), batch),
        trained_values(model),
    )
    linear = linearise(model)
    move(model)
    delta = {name: value - start[name] for name, value in trained_values(model).items()}
    assert_close(linear(**batch).logits, sum(jvp(reference, (start,), (delta,))), **EXACT)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_outputs_do_not_depend_on_padding(kind: str, side: str) -> None:
    model, batch = lora_model(kind, True), tiny_batch(kind)
    linear = linearise(model)
    move(model)
    width, alone = batch["input_ids"].shape[1], []
    for i, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        ids = batch["input_ids"][i : i + 1, :length]
        alone.append(linear(input_ids=ids, attention_mask=torch.ones_like(ids)).logits)
        if side == "left":
            for name in ("input_ids", "attention_mask"):
                batch[name][i] = batch[name][i].roll(width - int(length))
    if kind == "llama" or side == "right":  # BERT's positions are absolute
        if kind == "llama":
            batch["position_ids"] = (batch["attention_mask"].cumsum(1) - 1).clamp(min=0)
        assert_close(linear(**batch).logits, torch.cat(alone), **EXACT)


@pytest.mark.parametrize("labels", [1, 3], ids=["regression", "classification"])
@pytest.mark.parametrize("kind", ["bert", "llama", "distilbert"])
def test_the_loss_is_the_models_loss_at_the_linearised_outputs(kind: str, labels: int) -> None:
    batch = tiny_batch(kind, num_labels=labels)
    if labels == 1:
        batch["labels"] = batch["labels"].double() + 0.5
    model = tiny_model(kind, num_labels=labels)
    linear = linearise(model)
    assert torch.equal(linear(**batch).loss, model(**batch).loss)
    move(model)
    result, y = linear(**batch), batch["labels"]
    rule = nn.functional.cross_entropy if labels > 1 else nn.functional.mse_loss
    loss = rule(result.logits.squeeze(), y)
    assert_close(result.loss, loss, **EXACT)
    assert_close(linear(**batch, return_dict=False)[0], loss, **EXACT)
    assert type(result) is type(model(**batch))


def test_hidden_states_are_linearised_too() -> None:
    model, batch = lora_model("bert", True), tiny_batch("bert")
    linear = linearise(model)
    move(model)
    hidden = linear(**batch, output_hidden_states=True).hidden_states
    assert len(hidden) == 3
    assert not torch.allclose(hidden[-1], model(**batch, output_hidden_states=True).hidden_states[-1])


def test_an_unknown_loss_is_refused() -> None:
    class Focal(TwiceModel):
        def forward(self, labels: Tensor | None = None, **inputs: Tensor) -> Any:  # type: ignore[override]
            result = super().forward(**inputs)
            assert result.logits is not None
            result.loss = None if labels is None else result.logits.softmax(-1).square().mean()
            return result

    batch = tiny_batch("roberta")
    linear = linearise(Focal().double())
    with pytest.raises(InputError, match=r"leave the labels out|Leave the labels out"):
        linear(**batch)
    assert linear(**{name: value for name, value in batch.items() if name != "labels"}).loss is None


class _Operations(TorchDispatchMode):
    """Records the names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


def test_values_are_computed_by_the_attention_kernel_that_the_user_chose() -> None:
    model, batch = lora_model("bert", True), tiny_batch("bert")
    linear = linearise(model)
    for backend, fused in ((SDPBackend.FLASH_ATTENTION, True), (SDPBackend.MATH, False)):
        with sdpa_kernel(backend):
            with _Operations() as operations:
                result = linear(**batch).logits
            assert any("flash_attention" in name for name in operations.names) is fused
            assert torch.equal(result, model(**batch).logits)
    assert model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("scale", [None, 0.3])
def test_attention_in_plain_operations_equals_fused_attention(causal: bool, scale: float | None) -> None:
    from foretune.linear.forward_mode import attention

    query, key, value = (torch.randn(2, heads, 5, 8, dtype=torch.float64) for heads in (4, 2, 2))
    fused = nn.functional.scaled_dot_product_attention
    options: dict[str, Any] = {"is_causal": causal, "scale": scale, "enable_gqa": True}
    assert_close(attention(query, key, value, **options), fused(query, key, value, **options), **EXACT)
    if not causal:
        mask = torch.rand(2, 1, 5, 5) < 0.5
        mask[0, 0, 2] = False  # a query that attends to nothing
        for attention_mask in (mask, torch.where(mask, 0.5, -math.inf).double()):
            options["attn_mask"] = attention_mask
            with sdpa_kernel(SDPBackend.MATH):
                assert_close(attention(query, key, value, **options), fused(query, key, value, **options), **EXACT)
    with pytest.raises(InputError, match="uses dropout with probability"):
        attention(query, key, value, dropout_p=0.1)


def test_dropout_is_off_in_training_mode_and_modes_are_kept() -> None:
    torch.manual_seed(0)
    model = lora_model("bert", True, lora_dropout=0.5)
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.5
    linear, batch = linearise(model), tiny_batch("bert")
    expected = model(**batch).logits
    linear.train()
    assert torch.equal(linear(**batch).logits, expected)
    assert linear.training and all(module.training for module in model.modules() if module is not model)


def test_outputs_are_the_same_without_gradients_and_in_inference_mode() -> None:
    model, batch = lora_model("bert", True), tiny_batch("bert")
    linear = linearise(model)
    move(model)
    expected = linear(**batch).logits
    for mode in (torch.no_grad(), torch.inference_mode()):
        with mode:
            result = linear(**batch).logits
            assert not result.requires_grad and torch.equal(result, expected)


def test_only_trained_parameters_get_gradients() -> None:
    """This holds if peft requests gradients at the embeddings, and if inputs require gradients."""
    model = lora_model("bert", True).train()
    model.enable_input_require_grads()
    embedded = torch.randn(2, 5, 16, dtype=torch.float64, requires_grad=True)
    linear = linearise(model)
    linear(inputs_embeds=embedded, labels=torch.tensor([0, 1])).loss.backward()
    linear(**tiny_batch("bert")).loss.backward()
    assert embedded.grad is None
    assert all((p.grad is not None) == (name in linear.trained) for name, p in linear.named_parameters())


def test_operations_without_a_forward_derivative_are_an_input_error() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 4)
            self.odd = nn.LSTM(4, 4, batch_first=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.odd(self.first(x))[0]

    with pytest.raises(InputError, match=r"no forward derivative .*rnn"):
        linearise(Odd())(torch.randn(2, 3, 4))

    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

    @torch.library.custom_op("foretune_test::double", mutates_args=())
    def double(x: Tensor) -> Tensor:
        return x * 2  # PyTorch drops tangents here without an error

    for operation, words in ((Own.apply, "jvp"), (double, "foretune_test.double.default has no forward")):
        model = nn.Sequential(nn.Linear(4, 4))
        model[0].register_forward_hook(lambda module, args, output, apply=operation: apply(output))
        with pytest.raises(InputError, match=words):
            linearise(model)(torch.randn(2, 4))


def test_wrong_models_and_starts_are_input_errors() -> None:
    model = tiny_model("bert")
    with pytest.raises(InputError, match="already linearised"):
        linearise(linearise(model))
    start = trained_values(model)
    with pytest.raises(InputError, match=r"not those of the model's trained parameters \(.* and 66 more\)"):
        linearise(lora_model("bert"), start=start)
    with pytest.raises(InputError, match="none of its parameters requires gradients"):
        linearise(model.requires_grad_(False))


def test_a_forward_that_accelerate_has_wrapped_still_runs() -> None:
    model, batch = tiny_model("bert"), tiny_batch("bert")
    forward, calls = model.forward, []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return forward(*args, **kwargs)

    model.forward = wrapped
    linear = linearise(model)
    move(model)
    expected = linearise(tiny_model("bert"))
    expected.load_state_dict(linear.state_dict())
    calls.clear()
    assert torch.equal(linear(**batch).logits, expected(**batch).logits) and calls == [1]


def test_names_parameter_groups_and_state_are_those_of_the_model(tmp_path: Path) -> None:
    model, batch = lora_model("bert"), tiny_batch("bert")
    linear = linearise(model)
    assert dict(linear.named_parameters()) == dict(model.named_parameters())
    assert set(linear.state_dict()) == {*model.state_dict(), "start"}
    for kind in (linear, model):
        decayed = Trainer(kind, TrainingArguments(str(tmp_path), use_cpu=True)).get_decay_parameter_names(kind)
        assert decayed and set(linear.trained) >= set(decayed) - {n for n in decayed if "lora" not in n}
    move(model)
    other = linearise(lora_model("bert", True))
    other.load_state_dict(linear.state_dict())
    assert torch.equal(other(**batch).logits, linear(**batch).logits)
    clone = copy.deepcopy(linear)
    move(clone)
    assert torch.equal(other(**batch).logits, linear(**batch).logits)
    assert not torch.allclose(clone(**batch).logits, linear(**batch).logits)
    assert "Linearised" in repr(linear) and isinstance(linear, PeftModel)
    linear.register_forward_hook(lambda *_: pytest.fail("a hook of the linearised model ran on the true one"))
    model(**batch)


def test_a_saved_and_loaded_model_has_the_same_outputs(tmp_path: Path) -> None:
    batch = tiny_batch("bert")
    for name, model in (("peft", lora_model("bert")), ("plain", tiny_model("bert"))):
        linear = linearise(model)
        move(model)
        linear.save_pretrained(tmp_path / name)
        assert not [path for path in (tmp_path / name).iterdir() if path.suffix in {".bin", ".pt", ".pkl"}]
        if name == "peft":
            base = tiny_model("bert")
            loaded: Any = PeftModel.from_pretrained(base, str(tmp_path / name), is_trainable=True).eval()
        else:
            loaded, info = AutoModelForSequenceClassification.from_pretrained(
                tmp_path / name, dtype=torch.float64, output_loading_info=True
            )
            assert not any(info.values()) and loaded.config.architectures == ["BertForSequenceClassification"]
        assert torch.equal(loaded(**batch).logits, model(**batch).logits)
        again = linearise(loaded, start=load_file(tmp_path / name / "start.safetensors"))
        assert torch.equal(again(**batch).logits, linear(**batch).logits)


@pytest.mark.parametrize("labels", [1, 3], ids=["regression", "classification"])
def test_training_steps_equal_gradient_descent_in_closed_form(labels: int) -> None:
    """With squared loss and a frozen head, steps equal those on the kernel, and converge to its ridge regression."""
    task = tiny_task("bert", num_labels=labels)
    model = get_peft_model(copy.deepcopy(task.model), lora_config("bert", modules_to_save=None)).double().eval()
    kernel = ntk(collect(task), read_adapters(model))
    largest = float(kernel.spectrum().eigenvalues[0])
    strength, rate = largest, 0.45 / largest
    linear, batches = linearise(model), [task.collator(list(rows)) for rows in (task.train, task.eval)]
    theta = list(_theta(linear).values())
    start = [value.detach().clone() for value in theta]

    def outputs_now(split: int) -> Tensor:
        return kernel.centred(linear(**batches[split]).logits)

    for step in range(1, 41):
        gradients = torch.autograd.grad((outputs_now(0) - kernel.y_train).square().sum() / 2, theta)
        with torch.no_grad():
            for value, gradient, first in zip(theta, gradients, start, strict=True):
                value.sub_(rate * (gradient + strength * (value - first)))
        if step in {1, 30}:
            fit = gradient_descent(kernel, strength, rate, [step])
            assert_close(outputs_now(0), fit.fx_train[0], rtol=1e-8, atol=1e-8)
            assert_close(outputs_now(1), fit.fx_eval[0], rtol=1e-8, atol=1e-8)
    end = ridge(kernel, strength)
    assert float((end.fx_eval - kernel.fx_eval_0).norm()) > 0.05
    assert_close(outputs_now(1), end.fx_eval, rtol=1e-6, atol=1e-6)
