"""Warnings: which of them a forecast has, and what they say."""

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
LATE = Reach(0.01, 0.3, change_before_learning=0.03, weight_change=0.1, layer_changes=0.5, depth=1.0, linearity_gap=0.8)
ASTRAY = Reach(
    0.01, 0.3, change_before_learning=0.12, weight_change=0.2, layer_changes=2.0, depth=1.0, linearity_gap=0.8
)


@pytest.mark.parametrize(
    ("losses", "metric_std", "reach", "words"),
    [
        ([0.7, 0.6, 0.5], 0.02, LINEAR, []),
        ([0.7, 0.6, 0.5], None, LINEAR, []),
        ([0.7, 0.5, 0.8], 0.02, LINEAR, ["overfits: The eval loss is 0.5 at epoch 1"]),
        ([0.7, 0.7, 0.7], 0.02, LINEAR, ["little: "]),
        ([0.7, math.nan, math.nan], 0.02, LINEAR, ["diverges: "]),
        ([0.7, 0.6, 0.5], 0.07, WIDE, ["wide: The 90% interval is ±12 points"]),
        (
            [0.7, 0.6, 0.5],
            0.02,
            LATE,
            ["late: The linear weights change by 3.00% before the training loss falls."],
        ),
        (
            [0.7, 0.6, 0.5],
            0.07,
            LATE,
            ["late: The linear weights change by 3.00% before the training loss falls."],
        ),
        (
            [0.7, 0.6, 0.5],
            0.3,
            WILD,
            ["may move them by 90% of their size. Above 57%"],
        ),
        (
            [0.7, 0.6, 0.5],
            0.3,
            ASTRAY,
            ["collapse: The linear weights change by 12.00% before the training loss"],
        ),
    ],
)
def test_warnings_follow_from_curve_error_bar_and_reach(
    losses: list[float], metric_std: float | None, reach: Reach, words: list[str], tmp_path: Path
) -> None:
    task = load_task(write_tiny_run(tmp_path))
    warnings = advice(curve_of(losses, metric_std), task.candidates[0], task, reach, fitted_loss=1.0, frozen=0.6)
    said = [f"{warning.kind}: {warning.text}" for warning in warnings]
    assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))


def test_a_warning_for_losses_that_trainer_adds_up(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"gradient_accumulation_steps": 4}))
    said = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, LINEAR, fitted_loss=0.4, frozen=0.6)
    assert [warning.kind for warning in said] == ["accumulation"]


@pytest.mark.parametrize(
    ("schedule", "told"), [("constant", True), ("constant_with_warmup", True), ("linear", False), ("cosine", False)]
)
def test_a_warning_for_a_learning_rate_that_does_not_fall(schedule: str, told: bool, tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"lr_scheduler_type": schedule}))
    said = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, LINEAR, fitted_loss=0.4, frozen=0.6)
    assert [warning.kind for warning in said] == (["constant"] if told else [])


@pytest.mark.parametrize(
    ("loss", "word"), [(0.69, "is collapsing (training loss 0.69,"), (0.3, "is not collapsing so far (training")]
)
def test_the_warning_says_what_the_beginning_of_the_real_run_did(loss: float, word: str, tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    beginning = Beginning(16, 64, loss, simulated_loss=0.4, guess_loss=0.69, seconds=1.0)
    (said,) = advice(curve_of([0.7, 0.6, 0.5], 0.3), task.candidates[0], task, WILD, 0.3, 0.6, beginning)
    assert "after 16 of 64 steps it is" in said.text and word in said.text


def test_the_warning_says_that_a_run_with_little_gain_was_not_begun(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    (said,) = advice(curve_of([0.7, 0.6, 0.5], 0.3), task.candidates[0], task, WILD, 0.3, 0.6, gains_little=True)
    assert said.kind == "collapse" and "Even the simulation gains little over guessing" in said.text


@pytest.mark.parametrize(("fitted_loss", "outputs", "expected"), [(0.9, 8, True), (0.8, 8, False), (0.65, 2, False)])
def test_a_run_of_several_classes_is_unlearnt_above_a_loss(fitted_loss: float, outputs: int, expected: bool) -> None:
    assert unlearnt(fitted_loss, outputs) is expected


def test_a_warning_for_a_run_that_ends_before_it_has_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SEVERAL", 1)
    task = load_task(write_tiny_run(tmp_path))
    (said,) = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, LINEAR, fitted_loss=0.5, frozen=0.6)
    assert said.kind == "unlearnt" and "training loss is 0.5 at the end" in said.text
    assert f"guessing among {task.num_outputs} classes" in said.text


@pytest.mark.parametrize(("frozen", "changes", "told"), [(0.3, 2.0, True), (0.7, 2.0, False), (0.3, 0.3, False)])
def test_a_warning_for_features_that_predict_little(frozen: float, changes: float, told: bool, tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    reach = dataclasses.replace(LINEAR, layer_changes=changes)
    said = advice(curve_of([0.7, 0.6], 0.02), task.candidates[0], task, reach, 0.5, frozen)
    assert [warning.kind for warning in said] == (["open"] if told else [])
    assert not told or ("correlation of only 0.30" in said[0].text and "add up to 2)" in said[0].text)


def test_the_worst_warning_comes_first(tmp_path: Path) -> None:
    training = {"lr_scheduler_type": "constant", "gradient_accumulation_steps": 2}
    task = load_task(write_tiny_run(tmp_path, training=training))
    said = advice(curve_of([0.7, 0.5, math.nan], 0.3), task.candidates[0], task, WILD, fitted_loss=0.4, frozen=0.6)
    assert [warning.kind for warning in said] == ["diverges", "collapse", "constant", "accumulation"]
