"""Warnings name what happens, once."""

import dataclasses
import math
from pathlib import Path

import pytest
from helpers import write_tiny_run

from foretune.forecast import calibration
from foretune.forecast.advice import advice
from foretune.forecast.beginning import Beginning
from foretune.forecast.calibration import MeanPoint, unlearnt
from foretune.forecast.movement import Reach
from foretune.task import load_task


def curve_of(losses: list[float], metric_std: float | None) -> list[MeanPoint]:
    known = {"train_loss": None, "eval_metric": 0.5, "eval_loss_std": None, "eval_metric_std": metric_std}
    return [MeanPoint(step=k, epoch=float(k), eval_loss=loss, **known) for k, loss in enumerate(losses)]  # type: ignore[typeddict-item]


LINEAR = Reach(
    0.001, 0.03, change_before_learning=0.01, weight_change=0.01, layer_changes=0.5, depth=1.0, linearity_gap=0.1
)
WIDE = Reach(0.01, 0.3, change_before_learning=0.01, weight_change=0.1, layer_changes=0.5, depth=1.0, linearity_gap=1.2)
WILD = Reach(0.03, 0.9, change_before_learning=0.02, weight_change=0.1, layer_changes=0.5, depth=1.0, linearity_gap=0.8)
FAR = Reach(0.06, 1.9, change_before_learning=0.02, weight_change=0.1, layer_changes=0.5, depth=1.0, linearity_gap=0.8)
LATE = Reach(0.01, 0.3, change_before_learning=0.03, weight_change=0.1, layer_changes=0.5, depth=1.0, linearity_gap=0.8)
ASTRAY = Reach(
    0.01, 0.3, change_before_learning=0.12, weight_change=0.2, layer_changes=2.0, depth=1.0, linearity_gap=0.8
)


@pytest.mark.parametrize(
    ("losses", "metric_std", "reach", "words"),
    [
        ([0.7, 0.6, 0.5], 0.02, LINEAR, []),
        ([0.7, 0.6, 0.5], None, LINEAR, []),
        ([0.7, 0.5, 0.8], 0.02, LINEAR, ["lowest at epoch 1"]),
        ([0.7, 0.7, 0.7], 0.02, LINEAR, ["does not fall"]),
        ([0.7, math.nan, math.nan], 0.02, LINEAR, ["diverges"]),
        ([0.7, 0.6, 0.5], 0.07, WIDE, ["±12 points"]),
        ([0.7, 0.6, 0.5], 0.02, LATE, ["by 3.00% before the training loss falls: above 2.2% runs learn features"]),
        ([0.7, 0.6, 0.5], 0.07, LATE, ["by 3.00% before the training loss falls: above 2.2% runs learn features"]),
        (
            [0.7, 0.6, 0.5],
            0.3,
            WILD,
            ["may lead 90% of their size away by the end: above 57% runs can collapse"],
        ),
        (
            [0.7, 0.6, 0.5],
            0.3,
            FAR,
            ["away by the end: above 57% runs can collapse and learn nothing, and above 125% all"],
        ),
        ([0.7, 0.6, 0.5], 0.3, ASTRAY, ["by 12.00% before the training loss falls: above 5.6% runs can collapse"]),
    ],
)
def test_the_curve_the_error_bar_and_the_gaps_decide(
    losses: list[float], metric_std: float | None, reach: Reach, words: list[str], tmp_path: Path
) -> None:
    task = load_task(write_tiny_run(tmp_path))
    said = advice(curve_of(losses, metric_std), task.candidates[0], task, reach, fitted_loss=1.0, frozen=0.6)
    assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))


def test_accumulation_that_adds_up_is_named(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"gradient_accumulation_steps": 4}))
    said = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, LINEAR, fitted_loss=0.4, frozen=0.6)
    assert any("accumulated batches" in text for text in said)


@pytest.mark.parametrize(
    ("schedule", "told"), [("constant", True), ("constant_with_warmup", True), ("linear", False), ("cosine", False)]
)
def test_a_learning_rate_that_does_not_fall_is_named(schedule: str, told: bool, tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"lr_scheduler_type": schedule}))
    said = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, LINEAR, fitted_loss=0.4, frozen=0.6)
    assert [text for text in said if "does not fall" in text] == (said if told else [])


@pytest.mark.parametrize(("loss", "word"), [(0.69, "does (training loss 0.69,"), (0.3, "does not, so far (training")])
def test_a_real_beginning_is_told(loss: float, word: str, tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    beginning = Beginning(16, 64, loss, simulated_loss=0.4, guess_loss=0.69, seconds=1.0)
    (said,) = advice(curve_of([0.7, 0.6, 0.5], 0.3), task.candidates[0], task, WILD, 0.3, 0.6, beginning)
    assert "begun for 16 of 64 steps" in said and word in said and "whatever" not in said


def test_of_little_gain_nothing_is_to_be_lost(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    (said,) = advice(curve_of([0.7, 0.6, 0.5], 0.3), task.candidates[0], task, WILD, 0.3, 0.6, gains_little=True)
    assert "collapse and learn nothing, and even as simulated this one gains little over guessing;" in said


@pytest.mark.parametrize(("fitted_loss", "outputs", "expected"), [(0.9, 8, True), (0.8, 8, False), (0.65, 2, False)])
def test_several_classes_must_be_learnt_by_the_end(fitted_loss: float, outputs: int, expected: bool) -> None:
    assert unlearnt(fitted_loss, outputs) is expected


def test_a_run_that_ends_before_it_has_learnt_is_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SEVERAL", 1)
    task = load_task(write_tiny_run(tmp_path))
    (said,) = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, LINEAR, fitted_loss=0.5, frozen=0.6)
    assert "training loss 0.5 of" in said and f"of {task.num_outputs} classes" in said


@pytest.mark.parametrize(("frozen", "changes", "told"), [(0.3, 2.0, True), (0.7, 2.0, False), (0.3, 0.3, False)])
def test_what_features_leave_open_is_warned_of(frozen: float, changes: float, told: bool, tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    reach = dataclasses.replace(LINEAR, layer_changes=changes)
    said = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, reach, 0.5, frozen)
    assert [text for text in said if "correlation 0.30) and its layers move far (by 2 in sum)" in text] == said
    assert bool(said) == told
