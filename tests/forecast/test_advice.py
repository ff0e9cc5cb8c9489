"""Warnings name what happens, once."""

import math
from pathlib import Path

import pytest
from helpers import write_tiny_run

from foretune.forecast.advice import advice
from foretune.forecast.network import Gaps
from foretune.task import load_task
from foretune.train.loop import Point


def curve_of(losses: list[float]) -> list[Point]:
    return [
        Point(step=k, epoch=float(k), train_loss=None, eval_loss=loss, eval_metric=0.5) for k, loss in enumerate(losses)
    ]


LINEAR = Gaps(early=0.01, end=0.1, change=0.01)


@pytest.mark.parametrize(
    ("losses", "gaps", "words"),
    [
        ([0.7, 0.6, 0.5], LINEAR, []),
        ([0.7, 0.5, 0.8], LINEAR, ["lowest at epoch 1"]),
        ([0.7, 0.7, 0.7], LINEAR, ["does not fall"]),
        ([0.7, math.nan, math.nan], LINEAR, ["diverges"]),
        ([0.7, 0.6, 0.5], Gaps(early=0.1, end=1.2, change=0.1), ["leaves the region"]),
        ([0.7, 0.6, 0.5], Gaps(early=0.9, end=0.8, change=0.1), ["can collapse"]),
    ],
)
def test_the_curve_and_the_gaps_decide(losses: list[float], gaps: Gaps, words: list[str], tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    said = advice(curve_of(losses), task.candidates[0], task, gaps)
    assert len(said) == len(words) and all(word in text for word, text in zip(words, said, strict=True))


def test_accumulation_that_adds_up_is_named(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"gradient_accumulation_steps": 4}))
    assert any("accumulated batches" in text for text in advice(curve_of([0.7, 0.6]), task.candidates[0], task, LINEAR))
