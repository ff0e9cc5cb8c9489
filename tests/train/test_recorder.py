"""The bound of docs/theory.md P3, against linearised models that are really trained on the same batches."""

import copy
import json
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from helpers import tiny_rows, write_jsonl, write_tiny_run
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import SGD
from transformers.modeling_outputs import SequenceClassifierOutput

from foretune.linear import linearise, mean_loss
from foretune.task import Task, load_task
from foretune.train import GapRecorder, fine_tune, proximal
from foretune.train.recorder import CURVATURE

LOSSES = {"mean_squared_error": 1, "cross_entropy": 3}


class Tiny(nn.Module):
    def __init__(self, loss: str, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.loss = loss
        self.layers = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, LOSSES[loss])).double()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> SequenceClassifierOutput:
        logits = self.layers(x)
        loss: Any = None if labels is None else mean_loss(self.loss, logits, labels)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def draw(loss: str, n: int = 5) -> dict[str, Tensor]:
    labels = torch.randn(n).double() if loss == "mean_squared_error" else torch.randint(3, (n,))
    return {"x": torch.randn(n, 4).double(), "labels": labels}


def follow(loss: str, seed: int, decay: float, strength: float, share: float, steps: int = 25) -> list[float]:
    """Train a network and its linear model on the same batches; returns bound ÷ true distance for every step."""
    network = Tiny(loss, seed)
    linear, ratios = linearise(network), []
    shadow = copy.deepcopy(linear)  # it has its own parameters
    recorder = GapRecorder(linear, loss)
    optimisers = [SGD(list(model.parameters()), lr=1.0, weight_decay=decay) for model in (network, shadow)]
    for optimiser in optimisers:
        proximal(optimiser, strength=strength)
    for step in range(steps):
        batch = draw(loss)
        rows = linear.jacobian(batch)[1]
        longest = 2 / (CURVATURE[loss] / 5 * float(rows.square().sum()) + decay + strength)
        for model, optimiser in zip((network, shadow), optimisers, strict=True):
            optimiser.param_groups[0]["lr"] = share * longest * (0.0 if step == 7 else 1.0)
            optimiser.zero_grad()
            model(**batch).loss.backward()
        with recorder.step(batch, optimisers[0]):
            optimisers[0].step()
        optimisers[1].step()
        assert recorder.reason is None
        apart = float((linear.displacement() - shadow.displacement()).norm())
        assert apart <= recorder.gap * (1 + 1e-9) + 1e-12
        ratios.append(recorder.gap / apart if apart > 1e-9 else 1.0)
    return ratios


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_the_bound_is_never_violated(loss: str, decay: float, strength: float) -> None:
    ratios = [
        follow(loss, seed, decay, strength, share)[-1] for seed, share in enumerate((0.05, 0.2, 0.4, 0.49, 0.7, 0.95))
    ]
    assert 1 <= median(ratios) < 20  # the bound is not too loose


def test_the_bound_includes_clipping() -> None:
    """The bound holds for the distance from the plain linear run, whatever makes the real steps differ."""
    network = Tiny("mean_squared_error", 0)
    linear = linearise(network)
    shadow, recorder = copy.deepcopy(linear), GapRecorder(linear, "mean_squared_error")
    optimisers = [SGD(list(model.parameters()), lr=0.05) for model in (network, shadow)]
    for _ in range(10):
        batch = draw("mean_squared_error")
        for model, optimiser in zip((network, shadow), optimisers, strict=True):
            optimiser.zero_grad()
            model(**batch).loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 0.1)
        with recorder.step(batch, optimisers[0]):
            optimisers[0].step()
        optimisers[1].step()
    apart = float((linear.displacement() - shadow.displacement()).norm())
    assert 0.1 < apart <= recorder.gap


def test_a_linear_network_has_no_gap() -> None:
    network = Tiny("cross_entropy", 0)
    network.layers[0].requires_grad_(False)
    recorder = GapRecorder(linearise(network), "cross_entropy")
    optimiser = SGD(network.layers[2].parameters(), lr=0.1)
    for _ in range(10):
        batch = draw("cross_entropy")
        optimiser.zero_grad()
        network(**batch).loss.backward()
        with recorder.step(batch, optimiser):
            optimiser.step()
    assert recorder.reason is None and recorder.gap < 1e-14 and len(recorder.steps) == 10


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda p: torch.optim.Adam(p), "Adam, not plain SGD"),
        (lambda p: SGD(p, lr=0.1, momentum=0.9), "momentum"),
        (lambda p: SGD([{"params": p[:1], "lr": 0.2}, {"params": p[1:]}], lr=0.1), "several rates"),
        (lambda p: SGD(p[:2], lr=0.1), "does not have all trained parameters"),
        (lambda p: SGD(p, lr=1e3), r"step 1 is too long"),
        (lambda p: proximal(SGD(p, lr=0.1), strength=1.0, rule="selective"), "selectively"),
    ],
)
def test_nothing_is_certified_if_a_condition_fails(make: Any, reason: str) -> None:
    network = Tiny("cross_entropy", 0)
    recorder, batch = GapRecorder(linearise(network), "cross_entropy"), draw("cross_entropy")
    optimiser = make(list(network.parameters()))
    network(**batch).loss.backward()
    for _ in range(2):  # the second step does not change the reason
        with recorder.step(batch, optimiser):
            optimiser.step()
        assert recorder.reason is not None and reason in recorder.reason and not recorder.steps


def test_nothing_is_certified_if_parameters_change_outside_of_steps() -> None:
    network = Tiny("cross_entropy", 0)
    recorder, batch = GapRecorder(linearise(network), "cross_entropy"), draw("cross_entropy")
    optimiser = SGD(network.parameters(), lr=0.1)
    network(**batch).loss.backward()
    for _ in range(2):
        with recorder.step(batch, optimiser):
            optimiser.step()
        assert recorder.reason is None or len(recorder.steps) == 1
        with torch.no_grad():
            network.get_parameter("layers.0.weight").add_(0.1)
    assert recorder.reason is not None and "outside of steps, before step 2" in recorder.reason


def task_of(folder: Path, regression: bool = False, **sections: Any) -> Task:
    """A tiny run of plain SGD; regression predicts the number of opinion words in a text."""
    training = {"optim": "sgd", "learning_rate": 0.05, "max_grad_norm": 0.0} | sections.pop("training", {})
    path = write_tiny_run(folder, training=training, **sections)
    if regression:
        for name, seed in (("train", 1), ("eval", 2)):
            rows = [row | {"label": row["label"] - 0.5 + len(row["text"]) / 99} for row in tiny_rows(24, seed)]
            write_jsonl(folder / f"{name}.jsonl", rows)
        path.write_text(path.read_text().replace("task: classification", "task: regression"))
    return load_task(path)


@pytest.mark.parametrize("strength", [0.0, 1.0])
@pytest.mark.parametrize("regression", [True, False])
def test_recording_through_trainer(tmp_path: Path, regression: bool, strength: float) -> None:
    """Compare a real run, a recorded real run and a linearised run of the same file."""
    task = task_of(tmp_path, regression, proximal={"strength": strength}, training={"weight_decay": 0.1})
    candidate = task.candidates[0]
    fine_tune(task, candidate, tmp_path / "recorded", certify=True)
    fine_tune(task, candidate, tmp_path / "plain")
    fine_tune(task, candidate, tmp_path / "plain", linearised=True)
    theta, same, linear = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("recorded/train/base", "plain/train/base", "plain/train/base-linearised")
    )
    assert all(torch.equal(theta[name], same[name]) for name in theta)  # recording does not change the run
    record = json.loads((tmp_path / "recorded/train/base/adapter/gap.json").read_text())
    assert record["certified"] and len(record["steps"]) == 2 * (3 if regression else 6) and record["schema_version"]
    apart = sum(float((theta[name] - linear[name]).square().sum()) for name in theta) ** 0.5
    assert 0 < apart <= record["gap"] < 100 * apart


@pytest.mark.parametrize(
    ("training", "reason"),
    [
        ({"optim": "adamw_torch"}, "AdamW"),
        ({"gradient_accumulation_steps": 2}, "several batches"),
        ({"label_smoothing_factor": 0.1}, "smoothed"),
        ({"learning_rate": 100.0, "max_steps": 2}, "too long"),
    ],
)
def test_a_run_that_cannot_be_certified_says_why(tmp_path: Path, training: dict[str, Any], reason: str) -> None:
    task = task_of(tmp_path, training=training)
    fine_tune(task, task.candidates[0], tmp_path, certify=True)
    record = json.loads((tmp_path / "train/base/adapter/gap.json").read_text())
    assert not record["certified"] and reason in record["reason"] and record["gap"] is None


def test_an_interrupted_run_is_not_certified(tmp_path: Path) -> None:
    task = task_of(tmp_path, training={"num_train_epochs": 3})

    def pull_the_plug(step: int, steps: int) -> None:
        if step > 2 * steps // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(task, task.candidates[0], tmp_path, certify=True, progress=pull_the_plug)
    fine_tune(task, task.candidates[0], tmp_path, certify=True)
    record = json.loads((tmp_path / "train/base/adapter/gap.json").read_text())
    assert not record["certified"] and "interrupted" in record["reason"]
