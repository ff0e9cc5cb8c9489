"""Real runs: finished ones are kept, and interrupted ones continue and end where they would have ended."""

from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run

from foretune.results import read_json
from foretune.task import load_task
from foretune.train import fine_tune


def test_an_interrupted_run_continues_and_ends_the_same(tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, training={"num_train_epochs": 3})
    task = load_task(run)
    whole, _ = fine_tune(task, task.candidates[0], tmp_path / "whole")

    def pull_the_plug(step: int, steps: int) -> None:
        if step > 2 * steps // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(task, task.candidates[0], tmp_path / "cut", progress=pull_the_plug)
    folder = tmp_path / "cut" / "train" / task.candidates[0].name
    assert not (folder / "result.json").exists() and list(folder.glob("checkpoints/checkpoint-*"))
    steps: list[int] = []
    resumed, reused = fine_tune(task, task.candidates[0], tmp_path / "cut", progress=lambda step, _: steps.append(step))
    assert not reused and steps[0] > 1
    assert resumed["curve"][-1] == pytest.approx(whole["curve"][-1], rel=1e-5)
    assert len(resumed["curve"]) == len(whole["curve"]) == 4
    assert not list(folder.glob("checkpoints"))


def test_result_has_the_fields_that_others_read(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"num_train_epochs": 1}))
    result, reused = fine_tune(task, task.candidates[0], tmp_path / "out")
    assert not reused and fine_tune(task, task.candidates[0], tmp_path / "out")[1]
    assert {"schema_version", "versions", "seed", "device", "wall_seconds", "peft", "training", "linearised"} <= set(
        result
    )
    assert set(result["curve"][0]) == {"step", "epoch", "train_loss", "eval_loss", "eval_metric"}
    assert result["curve"][0]["step"] == 0 and result["cost"]["trainable_parameters"] > 0


def test_another_seed_has_its_own_folder_and_its_own_run(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"num_train_epochs": 1, "seed": 3}))
    candidate = task.candidates[0]
    own, _ = fine_tune(task, candidate, tmp_path / "out", seed=3)
    other, _ = fine_tune(task, candidate, tmp_path / "out", seed=4)
    folder = tmp_path / "out" / "train" / candidate.name
    assert (folder / "result.json").exists() and (folder / "seed-4" / "result.json").exists()
    assert (own["seed"], other["seed"]) == (3, 4) and own["final"]["eval_loss"] != other["final"]["eval_loss"]
    assert fine_tune(task, candidate, tmp_path / "out", seed=4)[1]


@pytest.mark.parametrize(
    "training", [{"eval_strategy": "no"}, {"eval_strategy": "steps", "eval_steps": 4, "logging_steps": 4}]
)
def test_the_last_point_is_the_end_of_training(tmp_path: Path, training: dict[str, Any]) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"num_train_epochs": 3, **training}))
    result, _ = fine_tune(task, task.candidates[0], tmp_path / "out")
    whole = load_task(write_tiny_run(tmp_path, training={"num_train_epochs": 3}))
    by_epoch, _ = fine_tune(whole, whole.candidates[0], tmp_path / "whole")
    assert result["curve"][-1]["step"] == by_epoch["curve"][-1]["step"] > 4
    assert result["final"]["eval_loss"] == pytest.approx(by_epoch["final"]["eval_loss"], rel=1e-6)
    assert result["final"]["train_loss"] is not None


def test_a_result_of_another_schema_is_named_and_made_again(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"num_train_epochs": 1}))
    folder = tmp_path / "out" / "train" / task.candidates[0].name
    folder.mkdir(parents=True)
    (folder / "result.json").write_text("{}")
    said: list[str] = []
    result, reused = fine_tune(task, task.candidates[0], tmp_path / "out", notify=said.append)
    assert not reused and "schema_version" in said[0] and result == read_json(folder / "result.json", "")
