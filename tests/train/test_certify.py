"""Certificates: docs/theory.md P4 against its formula, verdicts, and adapters that are loaded with their start."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import lora_config, tiny_task
from helpers import write_tiny_model, write_tiny_run
from peft import get_peft_model
from torch.testing import assert_close

from foretune.errors import InputError
from foretune.linear import Linearised, linearise
from foretune.results import read_json
from foretune.task import Task, load_task
from foretune.train import Certificate, certify, certify_run, fine_tune, load_adapter
from foretune.train.certify import DistanceBound, _same_label


def adapted(task: Task, size: float = 0.1) -> Linearised:
    """The linearised model of adapters that were moved away from their start by ``size``."""
    torch.manual_seed(0)
    linear = linearise(get_peft_model(task.model, lora_config("bert")).double().eval())
    with torch.no_grad():
        for parameter in linear.theta().values():
            parameter.add_(size * torch.randn_like(parameter))
    return linear


@pytest.mark.parametrize("labels", [1, 3], ids=["regression", "classification"])
def test_the_nonlinearity_equals_its_formula(labels: int) -> None:
    task = tiny_task("bert", n=40, num_train=3, num_labels=labels)
    linear = adapted(task)
    batch = task.collator(list(task.eval))
    theta, start = {n: p.detach().clone() for n, p in linear.theta().items()}, linear.initial()
    with torch.no_grad():
        f, f_linear = linear.network(**batch).logits, linear(**batch).logits
        linear.load_state_dict(start, strict=False)
        f0 = linear(**batch).logits
        linear.load_state_dict(theta, strict=False)
    if labels > 1:  # a change that softmax ignores does not count
        f, f_linear, f0 = (x - x.mean(1, keepdim=True) for x in (f, f_linear, f0))
    found = certify(task, linear)
    assert found.nonlinearity == pytest.approx(float((f - f_linear).norm() / (f - f0).norm()), rel=1e-10)
    each = (f - f_linear).norm(dim=1) / (f - f0).norm(dim=1)
    assert found.quantiles["0.5"] == pytest.approx(float(each.quantile(0.5)), rel=1e-10)
    assert found.displacement == pytest.approx(float(linear.displacement().norm()))
    if labels > 1:
        p, q = f.softmax(1), f_linear.softmax(1)
        assert found.divergence == pytest.approx(float((p * (p / q).log()).sum(1).mean()), rel=1e-8)
        assert found.label_agreement == pytest.approx(float((p.argmax(1) == q.argmax(1)).double().mean()))
    else:
        assert found.divergence is found.label_agreement is None
    assert set(found.metrics) == {"before", "network", "linearised"}
    assert not found.bound.certified and "certified" not in found.sentences[0].lower()


def test_a_linear_model_is_exactly_linear() -> None:
    task = tiny_task("bert", n=20)
    task.model.requires_grad_(False).classifier.requires_grad_(True)
    linear = linearise(task.model)
    assert certify(task, linear).verdict == "unchanged"
    with torch.no_grad():
        task.model.get_parameter("classifier.weight").add_(torch.randn(3, 16))
    found = certify(task, linear, per_layer=True)
    assert found.nonlinearity < 1e-12 and found.verdict == "lazy" and found.label_agreement == 1
    assert [layer.layer for layer in found.layers] == ["classifier"]
    assert found.layers[0].share == pytest.approx(1) and found.layers[0].nonlinearity < 1e-12


def test_layers_are_moved_alone() -> None:
    task = tiny_task("bert", n=20)
    linear = adapted(task, 0.0)
    moved = "bert.encoder.layer.1.output.dense"
    with torch.no_grad():
        for name, parameter in linear.theta().items():
            if moved in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    found = certify(task, linear, per_layer=True)
    layers = {layer.layer: layer for layer in found.layers}
    assert layers[moved].nonlinearity == pytest.approx(found.nonlinearity) and found.nonlinearity > 1e-3
    assert layers[moved].share == pytest.approx(1)
    assert layers[moved].displacement == pytest.approx(found.displacement)
    assert all(layer.share == layer.nonlinearity == 0 for name, layer in layers.items() if name != moved)
    assert {"classifier", "bert.pooler.dense"} <= set(layers)


@pytest.mark.parametrize(
    ("nonlinearity", "change", "verdict"),
    [
        (0.0, 1.0, "lazy"),
        (0.1, 1.0, "lazy"),
        (0.11, 1.0, "nearly linear"),
        (0.5, 1.0, "nearly linear"),
        (0.51, 1.0, "not linear"),
        (float("inf"), 1.0, "not linear"),
        (0.0, 0.0, "unchanged"),
    ],
)
def test_verdicts(nonlinearity: float, change: float, verdict: str) -> None:
    bound = DistanceBound(False, "nobody looked")
    found = Certificate(nonlinearity, {}, change, 1.0, None, None, "pearson", {}, (), bound)
    assert found.verdict == verdict and found.sentences[0].lower().startswith(verdict)
    assert change == 0 or "Nothing is certified about the run: nobody looked." in found.sentences
    assert found.to_json()["thresholds"] == {"lazy": 0.1, "nearly linear": 0.5}


def test_a_bound_above_the_distance_moved_is_said_to_say_nothing() -> None:
    for relative, words in ((0.2, "0.2 times the distance it moved"), (1.5, "says nothing"), (None, "says nothing")):
        bound = DistanceBound(True, None, 3.0, relative, 1.0, None, 4, True, 0.1)
        found = Certificate(0.1, {}, 1.0, 1.0, None, None, "pearson", {}, (), bound)
        assert found.sentences[1].startswith("Certified: after its 4 steps") and words in found.sentences[1]
        assert "without dropout" in found.sentences[1]


def test_labels_provably_agree_if_limits_do_not_overlap() -> None:
    outputs = torch.tensor([[1.0, 0.0], [0.4, 0.5], [3.0, 1.0]])
    limits = torch.tensor([[0.4, 0.4], [0.1, 0.1], [1.0, 1.5]])
    assert_close(_same_label(outputs, limits), 1 / 3)


def trained(folder: Path, certify: bool = False, **training: Any) -> tuple[Path, Path]:
    """Train a tiny run; returns its file and its adapter."""
    run = write_tiny_run(folder, training={"max_steps": 6} | training)
    task = load_task(run)
    fine_tune(task, task.candidates[0], folder, certify=certify)
    return run, folder / "train" / "base" / "adapter"


def test_the_outputs_bound_holds_for_the_linear_model_that_was_trained(tmp_path: Path) -> None:
    run, adapter = trained(tmp_path, True, optim="sgd", learning_rate=0.05, max_grad_norm=0.0)
    task = load_task(run)
    found = certify(task, adapter)
    bound = found.bound
    assert bound.certified and bound.parameters is not None and bound.outputs is not None and bound.steps == 6
    fine_tune(task, task.candidates[0], tmp_path, linearised=True)
    other = load_adapter(task, tmp_path / "train" / "base-linearised" / "adapter")
    mine, batch = load_adapter(task, adapter), task.collator(list(task.eval))
    assert float((mine.displacement() - other.displacement()).norm()) <= bound.parameters
    with torch.no_grad():
        f, f_linear = mine.network(**batch).logits, other(**batch).logits
        mine.load_state_dict(mine.initial(), strict=False)
        changed = (f - mine.network(**batch).logits).norm()
        assert float((f - f_linear).norm() / changed) <= bound.outputs
    assert bound.same_label is not None
    assert bound.same_label <= float((f.argmax(1) == f_linear.argmax(1)).double().mean())


def test_a_record_of_other_parameters_gives_no_bound(tmp_path: Path) -> None:
    run, adapter = trained(tmp_path / "one", True, optim="sgd")
    _, other = trained(tmp_path / "two", learning_rate=0.01)
    shutil.copy(adapter / "gap.json", other / "gap.json")
    bound = certify(load_task(run), other).bound
    assert not bound.certified and bound.reason is not None and "other parameters" in bound.reason


def test_a_record_that_was_edited_is_noticed_and_made_again(tmp_path: Path) -> None:
    sgd: dict[str, Any] = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0, "max_steps": 2}
    run, adapter = trained(tmp_path, True, **sgd)
    task, record, said = load_task(run), adapter / "gap.json", list[str]()
    before = json.loads(record.read_text())["gap"]
    for content in (record.read_text().replace(str(before), str(before / 2)), "{}"):
        record.write_text(content)
        with pytest.raises(InputError, match=r"gap\.json changed after training.*rain it again"):
            certify(task, adapter)
        assert not fine_tune(task, task.candidates[0], tmp_path, certify=True, notify=said.append)[1]
        assert "gap.json changed since" in said.pop() and certify(task, adapter).bound.parameters == before
    record.unlink()
    assert (
        certify(task, adapter).bound.reason
        == "its training was not recorded (foretune train --certify, with optim: sgd)"
    )


def test_there_is_no_bound_for_the_best_model_of_a_run(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch", "save_total_limit": 3}
    sgd = {"optim": "sgd", "learning_rate": 0.3, "max_steps": -1, "num_train_epochs": 3}
    worst = {
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,
    }  # so the best model is certainly not the last one
    run, adapter = trained(tmp_path, True, **sgd, **best, **worst)
    bound = certify(load_task(run), adapter).bound
    assert not bound.certified and bound.reason is not None and "other parameters" in bound.reason


def test_a_start_that_was_not_saved_is_drawn_again_from_the_seed(tmp_path: Path) -> None:
    run, adapter = trained(tmp_path)
    task = load_task(run)
    saved = load_adapter(task, adapter)
    (adapter / "start.safetensors").unlink()
    drawn = load_adapter(task, adapter)
    assert torch.equal(saved.start, drawn.start) and torch.equal(saved.displacement(), drawn.displacement())
    assert bool(saved.displacement().any()) and drawn.trained == saved.trained


def test_the_certificate_has_the_fields_that_others_read(tmp_path: Path) -> None:
    run, adapter = trained(tmp_path)
    content = certify_run(run, adapter, tmp_path)
    assert read_json(tmp_path / "certificate.json", "") == json.loads(json.dumps(content))
    assert content["name"] == "base" and content["adapter"] == "train/base/adapter" and content["examples"] == 32
    assert {"schema_version", "versions", "seed", "device", "wall_seconds", "verdict", "sentences"} <= set(content)


Damage = Callable[[Path, Path], Any]


def another_model(run: Path, adapter: Path) -> None:
    """The same architecture with other weights."""
    write_tiny_model(run.parent / "model", seed=1)


def no_start(run: Path, adapter: Path) -> None:
    (adapter / "start.safetensors").unlink()
    (adapter.parent / "result.json").unlink()


def other_rank(run: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"r": 4', '"r": 2'))


def other_modules(run: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(path.read_text().replace('"query"', '"q_proj"').replace('"value"', '"v_proj"'))


def overwrite(name: str, *, trained_here: bool = False) -> Damage:
    """Overwrite a file of the adapter; ``result.json`` with its checksums stays only if it was trained here."""

    def damage(run: Path, adapter: Path) -> None:
        (adapter / name).write_bytes(b"no")
        if not trained_here:
            (adapter.parent / "result.json").unlink()

    return damage


WRONG: list[tuple[Damage, str]] = [
    (lambda run, adapter: shutil.rmtree(adapter), "no such folder"),
    (lambda run, adapter: (adapter / "adapter_config.json").unlink(), "no adapter_config.json and"),
    (overwrite("adapter_model.safetensors"), "does not fit this model"),
    (overwrite("adapter_model.safetensors", trained_here=True), "adapter_model.safetensors changed after training"),
    (overwrite("start.safetensors", trained_here=True), "start.safetensors changed after training"),
    (lambda run, adapter: (adapter / "adapter_config.json").write_text("{}"), "does not fit this model"),
    (overwrite("start.safetensors"), "cannot be read"),
    (another_model, "frozen weights differ from this model's"),
    (other_rank, "it belongs to another model: "),
    (other_modules, "does not fit this model"),
    (no_start, "its start is not known"),
]


@pytest.mark.parametrize(("damage", "words"), WRONG, ids=[words for _, words in WRONG])
def test_wrong_adapters_are_explained(damage: Damage, words: str, tmp_path: Path) -> None:
    run, adapter = trained(tmp_path, max_steps=1)
    damage(run, adapter)
    with pytest.raises(InputError, match=words) as caught:
        certify(load_task(run), adapter)
    assert str(adapter) in caught.value.where
