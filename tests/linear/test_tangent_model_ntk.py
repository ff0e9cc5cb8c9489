"""The tangent model and its kernel, and moments of its training."""

import copy
import dataclasses

import pytest
import torch
from cases import lora_model, tiny_task
from torch.testing import assert_close

from foretune.kernel import ntk
from foretune.linear import Growth, Moments, TangentModel
from foretune.tangents import collect, read_adapters


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("kind", ["bert", "roberta"])
def test_the_ntk_is_the_kernel_of_the_tangent_model_at_its_start(kind: str, trained: bool) -> None:
    tangents, adapters = collect(tiny_task(kind)), read_adapters(lora_model(kind, trained))
    kernel = ntk(tangents, adapters)
    model = TangentModel(tangents, adapters, tangents.head).eval()
    logits = model(torch.arange(9)).logits
    outputs = kernel.centred(logits)
    assert_close(outputs, kernel.f0, rtol=1e-10, atol=1e-10)  # it starts at the outputs of the network
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(value, factors, retain_graph=True)])
        for value in outputs.flatten()
    ]
    jacobian = torch.stack(rows)
    assert_close(jacobian @ jacobian[:12].T, kernel.matrix, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("growing", [False, True], ids=["tangents", "growing"])
def test_recalled_moments_have_the_outputs_of_the_models(
    trained: bool, growing: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tangents, adapters = collect(tiny_task("bert")), read_adapters(lora_model("bert", trained))
    growth = Growth({adapter.layer: 1.0 for adapter in adapters}) if growing else None
    models = [
        TangentModel(tangents, active, copy.deepcopy(tangents.head), growth=growth)
        for active in (adapters, adapters[:1])
    ]
    examples = torch.arange(9).flip(0)
    moments = Moments(models, examples[:7], batch=4)
    monkeypatch.setattr("foretune.linear.moments.LOT", 4)  # fewer than the six models
    torch.manual_seed(0)
    before = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in (parameter for model in models for parameter in model.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
            before.append([model.eval()(examples[:7], tangents.labels[examples[:7]]) for model in models])
        moments.take()
    for stand_ins, outputs in zip(moments.recall(), before, strict=True):
        for stand_in, expected in zip(stand_ins, outputs, strict=True):
            result = stand_in(examples[:7], tangents.labels[examples[:7]])
            assert_close(result.logits, expected.logits, rtol=1e-10, atol=1e-10)
            assert_close(result.loss, expected.loss, rtol=1e-10, atol=1e-10)
            assert bool(stand_in(examples[7:]).logits.isnan().all())
    assert moments.recall() == []


@pytest.mark.parametrize("at_once", [0, 100])
def test_coordinates_do_not_depend_on_the_size_of_parts(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tangents, adapters = collect(tiny_task("bert")), read_adapters(lora_model("bert", True))
    model, examples = TangentModel(tangents, adapters, tangents.head).eval(), torch.arange(9)
    with torch.no_grad():
        for adapter in adapters:
            model.factors(adapter)[1].mul_(1.5)
        whole = model.coordinates(examples)
        monkeypatch.setattr("foretune.linear.along.AT_ONCE", at_once)
        assert_close(model.coordinates(examples), whole, rtol=1e-10, atol=1e-12)


def test_dropout_does_not_change_the_mean() -> None:
    """The mean over dropout masks is near the model without dropout."""
    tangents = collect(tiny_task("bert"))
    adapters = [dataclasses.replace(adapter, dropout=0.5) for adapter in read_adapters(lora_model("bert", True))]
    model, examples = TangentModel(tangents, adapters, tangents.head), torch.arange(9)
    torch.manual_seed(0)
    with torch.no_grad():
        for adapter in adapters:
            model.factors(adapter)[1].mul_(1.5)
        mean = torch.stack([model.train().coordinates(examples) for _ in range(400)]).mean(0)
        plain = model.eval().coordinates(examples)
    assert (mean - plain).norm() < 0.2 * plain.norm()


def test_several_adapters_on_one_layer_are_refused() -> None:
    tangents, adapters = collect(tiny_task("bert")), read_adapters(lora_model("bert", False))
    with pytest.raises(ValueError, match="several adapters"):
        TangentModel(tangents, [adapters[0], adapters[0]], tangents.head)
    with pytest.raises(ValueError, match="no tangents of nowhere"):
        TangentModel(tangents, [dataclasses.replace(adapters[0], layer="nowhere")], tangents.head)
