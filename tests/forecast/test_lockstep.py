"""Simulations in lockstep give the results that every candidate has alone."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_tiny_run
from transformers import TrainingArguments

from foretune.forecast import simulate as simulations
from foretune.forecast.forecast import forecast
from foretune.forecast.movement import Movement
from foretune.forecast.simulate import Start, simulate, simulate_all, together
from foretune.forecast.starts import Starts
from foretune.tangents import Tangents, basis, collect
from foretune.task import Task, load_task
from foretune.train.curve import Run
from foretune.train.put_off import TOGETHER
from foretune.train.together import can_share

CANDIDATES: list[dict[str, Any]] = [
    {"name": "base"},
    {"name": "faster", "training": {"learning_rate": 5e-2}},
    {"name": "all", "peft": {"target_modules": "all-linear", "use_rslora": True}},
    {"name": "moved", "peft": {"r": 2, "init_lora_weights": "gaussian"}},
    {"name": "first", "peft": {"layers_to_transform": [0], "r": 3}},
]
DROPPING: list[dict[str, Any]] = [
    {"name": "tenth", "peft": {"lora_dropout": 0.1}},
    {"name": "half", "peft": {"lora_dropout": 0.5, "target_modules": "all-linear"}},
    {"name": "twice", "peft": {"lora_dropout": 0.1, "r": 2}, "training": {"learning_rate": 2e-3}},
]
OTHERS: list[dict[str, Any]] = [
    {"name": "held", "proximal": {"strength": 1.0}},
    {"name": "longer", "training": {"num_train_epochs": 3}},
    {"name": "smooth", "training": {"label_smoothing_factor": 0.1}},
    {"name": "plateau", "training": {"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}},
    {"name": "two-a-step", "training": {"gradient_accumulation_steps": 2}},
]


def loaded(folder: Path, candidates: list[dict[str, Any]], **training: Any) -> tuple[Task, Tangents]:
    task = load_task(write_tiny_run(folder, training=training, candidates=candidates))
    return task, collect(task, dtype=torch.float64)


def starts(task: Task, tangents: Tangents, seed: int = 0) -> list[Start]:
    found, draw = [], Starts(task, tangents).draw
    for candidate in task.candidates:
        adapters, head = draw(candidate, seed)
        if candidate.name == "moved":  # the change of its weights does not start from zero
            adapters = [replace(each, b=torch.ones_like(each.b) / 9) for each in adapters]
        found.append(Start(candidate, adapters, head, watch=(Movement(10.0),)))
    return found


def assert_same(run: Run, other: Run) -> None:
    for mine, its in zip(run.curve, other.curve, strict=True):
        assert mine["train_loss"] == (its["train_loss"] and pytest.approx(its["train_loss"], rel=1e-6))  # float32
        for name in ("step", "epoch", "eval_loss", "eval_metric"):
            assert mine[name] == pytest.approx(its[name], rel=1e-9)


@pytest.mark.parametrize(
    "training",
    [
        {},
        {"optim": "sgd", "lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 0.1, "max_grad_norm": 0.01},
        {"eval_strategy": "steps", "eval_steps": 1, "num_train_epochs": 6, "max_grad_norm": 0},  # more than TOGETHER
        {"eval_strategy": "no", "train_sampling_strategy": "group_by_length", "optim": "adamw_torch_fused"},
        {"dataloader_drop_last": True, "per_device_train_batch_size": 10, "per_device_eval_batch_size": 20},
    ],
    ids=str,
)
def test_lockstep_gives_the_results_of_single_simulations(tmp_path: Path, training: dict[str, Any]) -> None:
    task, tangents = loaded(tmp_path, CANDIDATES, **training)
    tangents.head.dropouts = (0.1,)
    found = assert_each_as_alone(task, tangents)
    if "eval_steps" in training:
        assert len(found[0].curve) > TOGETHER


@pytest.mark.parametrize("taken", [1, 9], ids=["with-noise", "without-noise"])
def test_dropout_and_noise_in_lockstep_are_those_of_single_simulations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: int
) -> None:
    monkeypatch.setattr(basis, "directions_taken", lambda span: taken)
    task, tangents = loaded(tmp_path, DROPPING)
    tangents.head.dropouts = (0.1,)
    assert (tangents.num_left_out > 0) == (taken == 1)
    assert_each_as_alone(task, tangents)


def assert_each_as_alone(task: Task, tangents: Tangents) -> list[Run]:
    drawn = starts(task, tangents)
    (group,) = together(drawn)
    assert [each.candidate.name for each in group] == [each.name for each in task.candidates]
    told: list[int] = []
    found = simulate_all(tangents, task, drawn, 0, progress=told.append)
    assert told == sorted(told) and told[-1] == len(drawn) and len(set(told)) > 2
    for together_start, alone, (run, model) in zip(drawn, starts(task, tangents), found, strict=True):
        single, other = simulate(tangents, task, *alone[:3], 0, watch=alone.watch)
        assert_same(run, single)
        assert run.step_losses == pytest.approx(single.step_losses, rel=1e-9)
        (mine_moved,), (its_moved,) = together_start.watch, alone.watch
        assert isinstance(mine_moved, Movement) and isinstance(its_moved, Movement)
        assert mine_moved.changes == pytest.approx(its_moved.changes, rel=1e-7)
        assert mine_moved.largest_step == pytest.approx(its_moved.largest_step, rel=1e-7)
        for (name, value), (its_name, its_value) in zip(
            model.named_parameters(), other.named_parameters(), strict=True
        ):
            assert name == its_name
            torch.testing.assert_close(value, its_value, rtol=1e-7, atol=1e-9)
    return [run for run, _ in found]


def test_a_run_that_diverges_does_not_change_the_others(tmp_path: Path) -> None:
    task, tangents = loaded(tmp_path, [{"name": "base"}, {"name": "wild"}])
    base, wild = task.candidates  # a run file may not have such a rate
    task.candidates = (base, replace(wild, training=wild.training | {"learning_rate": 1e200}))
    tame, lost = simulate_all(tangents, task, starts(task, tangents), 0)
    assert not math.isfinite(lost[0].step_losses[-1])
    candidate, adapters, head, _ = starts(task, tangents)[0]
    single, _ = simulate(tangents, task, candidate, adapters, head, 0)
    assert_same(tame[0], single)


def test_candidates_with_other_training_arguments_are_simulated_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, tangents = loaded(tmp_path, CANDIDATES[:2] + DROPPING + OTHERS)
    names = [[each.candidate.name for each in group] for group in together(starts(task, tangents))]
    assert names == [["base", "faster"], ["tenth", "half", "twice"], *([each["name"]] for each in OTHERS)]
    assert [can_share(TrainingArguments(str(tmp_path), learning_rate=rate)) for rate in (0.0, 1e-3)] == [False, True]
    monkeypatch.setattr(simulations, "PARAMETERS", 1)
    assert all(len(group) == 1 for group in together(starts(task, tangents)))


def test_candidates_with_the_same_name_are_kept_apart(tmp_path: Path) -> None:
    task, tangents = loaded(tmp_path, CANDIDATES[:2])
    base, faster = task.candidates
    found = forecast(tangents, task, [base, replace(faster, name="base")])
    assert {each.candidate.training["learning_rate"] for each in found} == {1e-3, 5e-2}


def test_a_forecast_does_not_depend_on_the_other_candidates(tmp_path: Path) -> None:
    task, tangents = loaded(tmp_path, CANDIDATES)
    several = {each.candidate.name: each for each in forecast(tangents, task, task.candidates)}
    for candidate in task.candidates[1:3]:
        (alone,) = forecast(tangents, task, [candidate])
        mine, its = several[candidate.name].to_json(), alone.to_json()
        for name in ("predicted", "simulated"):
            assert mine[name]["eval_loss"] == pytest.approx(its[name]["eval_loss"], rel=1e-7)
        assert mine["linearity_gap"] == pytest.approx(its["linearity_gap"], rel=1e-4)
