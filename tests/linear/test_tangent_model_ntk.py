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
def test_the_ntk_linearises_the_tangent_model(kind: str, trained: bool) -> None:
    tangents, adapters = collect(tiny_task(kind)), read_adapters(lora_model(kind, trained))
    kernel = ntk(tangents, adapters)
    model = TangentModel(tangents, adapters, tangents.head).eval()
    logits = model(torch.arange(9)).logits
    outputs = kernel.centred(logits)
    assert_close(outputs, kernel.f0, rtol=1e-10, atol=1e-10)  # it starts where the network starts
    factors = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    rows = [
        torch.cat([g.flatten() for g in torch.autograd.grad(value, factors, retain_graph=True)])
        for value in outputs.flatten()
    ]
    jacobian = torch.stack(rows)
    assert_close(jacobian @ jacobian[:12].T, kernel.matrix, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("growing", [False, True], ids=["tangents", "growing"])
def test_moments_give_the_outputs_the_models_had(trained: bool, growing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tangents, adapters = collect(tiny_task("bert")), read_adapters(lora_model("bert", trained))
    growth = Growth({adapter.layer: 1.0 for adapter in adapters}) if growing else None
    models = [
        TangentModel(tangents, some, copy.deepcopy(tangents.head), growth=growth) for some in (adapters, adapters[:1])
    ]
    examples = torch.arange(9).flip(0)
    moments = Moments(models, examples[:7], batch=4)
    monkeypatch.setattr("foretune.linear.moments.LOT", 4)  # of six
    torch.manual_seed(0)
    before = []
    for _ in range(3):
        with torch.no_grad():
            for parameter in (parameter for model in models for parameter in model.parameters()):
                parameter.add_(0.1 * torch.randn_like(parameter))
            before.append([model.eval()(examples[:7], tangents.labels[examples[:7]]) for model in models])
        moments.take()
    for stand_ins, outputs in zip(moments.recall(), before, strict=True):
        for stand_in, had in zip(stand_ins, outputs, strict=True):
            found = stand_in(examples[:7], tangents.labels[examples[:7]])
            assert_close(found.logits, had.logits, rtol=1e-10, atol=1e-10)
            assert_close(found.loss, had.loss, rtol=1e-10, atol=1e-10)
            assert bool(stand_in(examples[7:]).logits.isnan().all())
    assert moments.recall() == []


@pytest.mark.parametrize("at_once", [0, 100])
def test_how_much_is_held_at_once_changes_nothing(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    tangents, adapters = collect(tiny_task("bert")), read_adapters(lora_model("bert", True))
    model, examples = TangentModel(tangents, adapters, tangents.head).eval(), torch.arange(9)
    with torch.no_grad():
        for adapter in adapters:
            model.factors(adapter)[1].mul_(1.5)
        whole = model.coordinates(examples)
        monkeypatch.setattr("foretune.linear.along.AT_ONCE", at_once)
        assert_close(model.coordinates(examples), whole, rtol=1e-10, atol=1e-12)


def test_dropout_leaves_the_mean() -> None:
    """The mean over dropout masks is the model without."""
    tangents = collect(tiny_task("bert"))
    adapters = [dataclasses.replace(each, dropout=0.5) for each in read_adapters(lora_model("bert", True))]
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
