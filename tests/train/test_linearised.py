"""Training the linearised model: the same loop, a folder of its own, an adapter that loads, and an unharmed run."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_tiny_run
from peft import PeftModel
from safetensors.torch import load_file

from foretune.errors import InputError
from foretune.linear import linearise
from foretune.task import load_task
from foretune.train import build_peft_model, fine_tune

SMALL = {"num_train_epochs": 2, "learning_rate": 1e-4, "optim": "sgd"}


def test_the_adapter_is_the_trained_one_and_its_start_is_kept(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    candidate = task.candidates[0]
    batch = task.collator([task.eval[i] for i in range(8)])
    first = {n: p for n, p in build_peft_model(task, candidate, candidate.seed).named_parameters() if p.requires_grad}
    for linearised, name in ((True, "base-linearised"), (False, "base")):
        result, _ = fine_tune(task, candidate, tmp_path, linearised=linearised)
        folder = tmp_path / "train" / name / "adapter"
        start = load_file(folder / "start.safetensors")
        assert start.keys() == first.keys() and all(torch.equal(start[n], first[n]) for n in first)
        model: Any = PeftModel.from_pretrained(task.build_model(candidate.seed), str(folder), is_trainable=True).eval()
        model = linearise(model, start) if linearised else model
        rows = task.collator(list(task.eval))
        with torch.no_grad():
            assert float(model(**rows).loss) == pytest.approx(result["final"]["eval_loss"], rel=1e-5)
            assert model(**batch).logits.shape == (8, 2)


def test_small_steps_agree_with_those_of_the_real_run(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training=SMALL))
    runs = [fine_tune(task, task.candidates[0], tmp_path, linearised=linearised)[0] for linearised in (False, True)]
    true, linear = ([point["eval_loss"] for point in run["curve"]] for run in runs)
    assert abs(true[-1] - true[0]) > 1e-6
    assert linear[-1] - linear[0] == pytest.approx(true[-1] - true[0], rel=0.02)


def test_an_interrupted_linearised_run_ends_the_same(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"num_train_epochs": 3}))
    whole, _ = fine_tune(task, task.candidates[0], tmp_path / "whole", linearised=True)

    def pull_the_plug(step: int, steps: int) -> None:
        if step > 2 * steps // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(task, task.candidates[0], tmp_path / "cut", linearised=True, progress=pull_the_plug)
    resumed, reused = fine_tune(task, task.candidates[0], tmp_path / "cut", linearised=True)
    assert not reused and resumed["curve"][-1] == pytest.approx(whole["curve"][-1], rel=1e-5)


def test_noise_on_the_embeddings_is_refused(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"neftune_noise_alpha": 5.0}))
    with pytest.raises(InputError, match=r"training.neftune_noise_alpha: .*Leave it out"):
        fine_tune(task, task.candidates[0], tmp_path, linearised=True)
    assert not (tmp_path / "train").exists()


def test_a_candidate_named_like_a_linearised_run_is_not_confused_with_it(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, candidates=[{"name": "one"}], training={"max_steps": 2}))
    (one,) = task.candidates
    fine_tune(task, dataclasses.replace(one, name="one-linearised"), tmp_path)
    said: list[str] = []
    result, reused = fine_tune(task, one, tmp_path, linearised=True, notify=said.append)
    assert result["linearised"] and not reused and "linearised was False, now True" in said[0]
    assert (tmp_path / "replaced" / "one-linearised-1" / "result.json").exists()
