"""Warnings name what happens, once."""

import math
from pathlib import Path

import pytest
from helpers import write_tiny_run

from foretune.forecast.advice import advice
from foretune.task import load_task
from foretune.train import Run


def run_of(losses: list[float]) -> Run:
    curve = [
        {"step": k, "epoch": float(k), "train_loss": None, "eval_loss": loss, "eval_metric": 0.5}
        for k, loss in enumerate(losses)
    ]
    return Run(curve, 0.0, 0.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("losses", "words"),
    [
        ([0.7, 0.6, 0.5], []),
        ([0.7, 0.5, 0.8], ["lowest at epoch 1"]),
        ([0.7, 0.7, 0.7], ["does not fall"]),
        ([0.7, math.nan, math.nan], ["diverges"]),
    ],
)
def test_the_curve_decides(losses: list[float], words: list[str], tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    said = advice(task.candidates[0], task, [run_of(losses)], 0.1)
    assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))


def test_accumulation_that_adds_up_is_named(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"gradient_accumulation_steps": 4}))
    assert any("accumulated batches" in text for text in advice(task.candidates[0], task, [run_of([0.7, 0.6])], 0.1))


def test_leaving_the_tangents_is_named(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    assert any("linearity gap above" in text for text in advice(task.candidates[0], task, [run_of([0.7, 0.6])], 0.8))
