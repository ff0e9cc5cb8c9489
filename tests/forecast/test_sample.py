"""A sample of the training examples stands for all, if there are too many to keep their tangents."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import write_tiny_run

from foretune.cli.console import progress_bar
from foretune.cli.forecast import show
from foretune.forecast.calibration import Correction
from foretune.forecast.forecast import forecast
from foretune.forecast.run import forecast_run
from foretune.forecast.sample import OPEN, Sample, without
from foretune.forecast.simulate import index_datasets, simulate
from foretune.forecast.starts import Starts
from foretune.tangents import collect
from foretune.task import Task, load_task


def tiny(folder: Path) -> Task:
    return load_task(write_tiny_run(folder, training={"num_train_epochs": 2}))


def test_a_sample_is_always_the_same(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    rows = [tuple(ids) for ids in task.train["input_ids"]]
    drawn = [tuple(ids) for ids in task.sampled(20).train["input_ids"]]
    assert drawn == [tuple(ids) for ids in task.sampled(20).train["input_ids"]]
    assert len(drawn) == 20 and set(drawn) <= set(rows) and drawn != rows[:20]
    assert task.sampled(48) is task and task.sampled(100) is task


def test_a_sample_is_simulated_as_if_its_examples_were_repeated(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    candidate, kept = task.candidates[0], 20
    few = collect(task, dtype=torch.float32, sample=kept)
    drawn = task.sampled(kept).train
    copies = replace(task, train=drawn.select([i % kept for i in range(len(task.train))]))
    curves = []
    for tangents, told in ((few, task), (collect(copies, dtype=torch.float32), copies)):
        start = Starts(told, tangents).draw(candidate, candidate.seed)
        curves.append(simulate(tangents, told, candidate, *start, candidate.seed)[0].curve)
    assert [point["step"] for point in curves[0]] == [0, 6, 12]  # 48 examples in batches of 8
    for ours, theirs in zip(*curves, strict=True):
        assert ours["epoch"] == theirs["epoch"]
        assert ours["eval_loss"] == pytest.approx(theirs["eval_loss"], rel=1e-5)
    train, _ = index_datasets(few, task)
    assert train["index"][18:22] == [18, 19, 0, 1] and train["labels"][20:] == train["labels"][:28]


def test_refreshed_tangents_use_the_same_sample(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    tangents = collect(task, dtype=torch.float32, sample=20)
    slow = replace(task.candidates[0], training=task.candidates[0].training | {"learning_rate": 1e-9})
    plain, refreshed = (forecast(tangents, task, [slow], refreshes=count)[0] for count in (0, 2))
    for one, other in zip(plain.simulated, refreshed.simulated, strict=True):
        assert one["eval_loss"] == pytest.approx(other["eval_loss"], abs=1e-6)


def test_error_bars_include_the_error_of_sampling(tmp_path: Path) -> None:
    whole = Correction(0.1, 0.3)
    assert Sample(50, 50).widened(whole) == whole
    assert Sample(50, 100).widened(whole) == pytest.approx((0.1, (0.3**2 + OPEN**2 / 100) ** 0.5))
    task = tiny(tmp_path)
    found = forecast(collect(task, dtype=torch.float32, sample=20), task, task.candidates)[0]
    alone = replace(found, sample=Sample(48, 48))
    assert (found.curve[-1]["eval_metric_std"] or 0) > (alone.curve[-1]["eval_metric_std"] or 1)


def test_the_losses_of_a_sample_are_brought_together() -> None:
    half = Sample(1000, 2000)
    assert half.excess(0.5, 0.3) == pytest.approx(0.1) and half.excess(0.3, 0.5) == 0
    assert Sample(2000, 2000).excess(0.5, 0.3) == 0
    point = {"step": 3, "train_loss": 0.3, "eval_loss": 0.5, "eval_metric": 0.8}
    expected = {"step": 3, "train_loss": 0.375, "eval_loss": 0.475, "eval_metric": 0.8}
    assert without(0.1, point) == pytest.approx(expected)
    assert without(0.1, {"train_loss": None})["train_loss"] is None


def test_a_sample_through_the_run_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_tiny_run(tmp_path)
    found = forecast_run(run, tmp_path / "out", sample=20, bar=progress_bar)
    assert found["collect"]["train_examples"] == 20 and found["task"]["train_examples"] == 48
    assert 0 < found["task"]["guess_loss"] <= math.log(found["task"]["num_outputs"])
    assert found["candidates"][0]["simulated"]["eval_loss"] > 0
    again = forecast_run(run, tmp_path / "out", sample=20, bar=progress_bar)
    assert again["collect"]["reused"]
    show(again)
    assert "48 training examples (20 of them stand for all)" in " ".join(capsys.readouterr().out.split())
    assert json.loads((tmp_path / "out" / "forecast.json").read_text())["collect"]["train_examples"] == 20


def test_a_run_that_diverges_keeps_its_points_before_that(tmp_path: Path) -> None:
    task = tiny(tmp_path)
    for sample in (None, 20):
        found = forecast(collect(task, dtype=torch.float32, sample=sample), task, task.candidates)[0]
        for loss in (float("inf"), float("nan")):
            points = [*found.runs[0].curve[:-1], found.runs[0].curve[-1] | {"eval_loss": loss}]
            diverged = replace(found, runs=[replace(found.runs[0], curve=points)])
            assert diverged.excess == 0
            assert [math.isfinite(point["eval_loss"]) for point in diverged.curve] == [True, True, False]
            assert math.isfinite(diverged.curve[-1]["train_loss"] or math.nan)
