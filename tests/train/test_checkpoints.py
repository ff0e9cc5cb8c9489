"""A run continues from its last whole checkpoint, whatever happened to other checkpoints."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_rows, write_jsonl, write_tiny_run

from foretune.results import read_json
from foretune.task import Task, load_task
from foretune.train import fine_tune
from foretune.train.checkpoints import fault

EPOCHS = 3  # an epoch has six steps


def cut_short(folder: Path, **training: Any) -> Path:
    """Interrupt a run after two checkpoints, and return the folder with them."""
    task = load_task(write_tiny_run(folder, training={"num_train_epochs": EPOCHS, **training}))

    def pull_the_plug(step: int, steps: int) -> None:
        if step > 2 * steps // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(task, task.candidates[0], folder / "out", progress=pull_the_plug)
    saved = folder / "out" / "train" / "base" / "checkpoints"
    assert [path.name for path in sorted(saved.glob("checkpoint-*"))] == ["checkpoint-12", "checkpoint-6"]
    assert fault(saved / "checkpoint-12") is None
    return saved


def go_on(folder: Path, task: Task | None = None) -> tuple[int, list[str], dict[str, Any]]:
    """Start the run of a folder again; returns its first step, its notes and its result."""
    task = task or load_task(folder / "run.yaml")
    steps: list[int] = []
    said: list[str] = []
    result, _ = fine_tune(
        task, task.candidates[0], folder / "out", progress=lambda step, _: steps.append(step), notify=said.append
    )
    return steps[0], said, result


def overwrite(path: Path) -> None:
    """Change bytes in the middle of a file."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20] = bytes(20)
    path.write_bytes(content)


DAMAGES: list[tuple[str, Callable[[Path], Any]]] = [
    ("adapter_model.safetensors", lambda last: overwrite(last / "adapter_model.safetensors")),
    ("optimizer.pt", lambda last: (last / "optimizer.pt").unlink()),
    ("scheduler.pt", lambda last: (last / "scheduler.pt").unlink()),
    ("trainer_state.json", lambda last: (last / "trainer_state.json").write_text("{}")),
    ("not written to its end", lambda last: (last / "foretune-seal.json").unlink()),
]


@pytest.mark.parametrize(("words", "damage"), DAMAGES, ids=[words for words, _ in DAMAGES])
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(
    words: str, damage: Callable[[Path], Any], tmp_path: Path
) -> None:
    damage(cut_short(tmp_path) / "checkpoint-12")
    first, said, result = go_on(tmp_path)
    assert first == 7 and len(said) == 1 and "checkpoint-12" in said[0] and words in said[0]
    assert len(result["curve"]) == EPOCHS + 1


def test_an_empty_checkpoint_beside_a_good_one_does_no_harm(tmp_path: Path) -> None:
    (cut_short(tmp_path) / "checkpoint-18").mkdir()
    first, said, _ = go_on(tmp_path)
    assert first == 13 and "checkpoint-18" in said[0]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda folder: write_tiny_run(folder, training={"num_train_epochs": EPOCHS, "learning_rate": 2e-3}),
            "learning_rate was 0.001, now 0.002",
        ),
        (
            lambda folder: write_tiny_run(folder, training={"num_train_epochs": EPOCHS}, peft={"r": 2}),
            "peft.r was 4, now 2",
        ),
        (lambda folder: write_jsonl(folder / "train.jsonl", tiny_rows(48, seed=7)), "other data"),
        (lambda folder: write_jsonl(folder / "eval.jsonl", tiny_rows(32, seed=7)), "other data"),
    ],
    ids=["rate", "rank", "train", "eval"],
)
def test_checkpoints_of_another_run_are_not_used(change: Callable[[Path], Any], words: str, tmp_path: Path) -> None:
    cut_short(tmp_path)
    change(tmp_path)
    first, said, result = go_on(tmp_path)
    assert first == 1 and words in said[0] and "starts afresh" in said[0]
    fresh = load_task(tmp_path / "run.yaml")
    expected, _ = fine_tune(fresh, fresh.candidates[0], tmp_path / "fresh")
    assert result["final"] == expected["final"]


def test_results_of_other_data_are_moved_away_and_made_again(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"max_steps": 2}))
    fine_tune(task, task.candidates[0], tmp_path / "out")
    flipped = [row | {"label": 1 - row["label"]} for row in tiny_rows(48, seed=1)]
    write_jsonl(tmp_path / "train.jsonl", flipped)
    _, said, result = go_on(tmp_path)
    assert "other data, labels, pooling or model" in said[0] and "replaced/base-1" in said[0]
    assert result["task"] != read_json(tmp_path / "out" / "replaced" / "base-1" / "result.json", "")["task"]


def test_runs_of_other_seeds_are_not_moved(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"max_steps": 2}))
    for seed in (0, 1):
        fine_tune(task, task.candidates[0], tmp_path / "out", seed=seed)
    overwrite(tmp_path / "out" / "train" / "base" / "adapter" / "adapter_model.safetensors")
    _, said, _ = go_on(tmp_path)
    assert "adapter_model.safetensors changed since" in said[0]
    assert fine_tune(task, task.candidates[0], tmp_path / "out", seed=1)[1], "the other seed is still there"


def test_a_best_checkpoint_that_is_damaged_is_not_loaded_at_the_end(tmp_path: Path) -> None:
    best = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}
    saved = cut_short(tmp_path, **best)
    state = json.loads((saved / "checkpoint-12" / "trainer_state.json").read_text())
    overwrite(saved / Path(state["best_model_checkpoint"]).name / "adapter_model.safetensors")
    _, said, result = go_on(tmp_path)
    assert said and result["final"]["eval_loss"] == min(point["eval_loss"] for point in result["curve"][1:])


KILLED = """
import os, signal, sys
from foretune.task import load_task
from foretune.train import fine_tune
import foretune.train.loop as loop
from transformers import Trainer

save = Trainer._save_optimizer_and_scheduler
def killed(self, output):
    if self.state.global_step >= 12:
        os.kill(os.getpid(), signal.SIGKILL)
    save(self, output)
Trainer._save_optimizer_and_scheduler = killed
task = load_task(sys.argv[1])
fine_tune(task, task.candidates[0], __import__("pathlib").Path(sys.argv[2]))
"""


def test_a_run_killed_while_saving_continues_from_the_previous_checkpoint(tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, training={"num_train_epochs": EPOCHS})
    done = subprocess.run([sys.executable, "-c", KILLED, run, tmp_path / "out"], check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    first, said, result = go_on(tmp_path)
    assert first == 7 and "checkpoint-12: it was not written to its end" in said[0]
    whole = load_task(run)
    expected, _ = fine_tune(whole, whole.candidates[0], tmp_path / "whole")
    assert result["curve"][-1] == pytest.approx(expected["curve"][-1], rel=1e-5)
