"""Evaluations always use all examples, and there is one at the end, whatever the training arguments say."""

from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run
from transformers import TrainerCallback, TrainingArguments

from foretune.forecast.forecast import forecast
from foretune.tangents import collect
from foretune.task import load_task
from foretune.train import build_peft_model, fine_tune, loop_arguments, run_trainer
from foretune.train.arguments import depends_on_evaluations

SILENT: list[dict[str, Any]] = [
    {"dataloader_drop_last": True, "per_device_eval_batch_size": 20},
    {"prediction_loss_only": True},
    {"batch_eval_metrics": True},
    {"eval_do_concat_batches": False},
    {"include_for_metrics": ["inputs", "loss"]},
    {"label_names": ["labels"]},
    {"metric_for_best_model": "accuracy"},
]


@pytest.mark.parametrize("training", SILENT, ids=lambda value: next(iter(value)))
def test_evaluation_arguments_do_not_change_results(training: dict[str, Any], tmp_path: Path) -> None:
    plain = load_task(write_tiny_run(tmp_path / "plain"))
    task = load_task(write_tiny_run(tmp_path / "own", training=training))
    expected, _ = fine_tune(plain, plain.candidates[0], tmp_path / "plain")
    result, _ = fine_tune(task, task.candidates[0], tmp_path / "own")
    assert [point["eval_metric"] for point in result["curve"]] == [p["eval_metric"] for p in expected["curve"]]
    losses = [point["eval_loss"] for point in result["curve"]]
    assert losses == pytest.approx([point["eval_loss"] for point in expected["curve"]], rel=1e-6)
    (ours,) = forecast(collect(task), task, task.candidates)
    (theirs,) = forecast(collect(plain), plain, plain.candidates)
    assert ours.runs[0].curve == theirs.runs[0].curve


@pytest.mark.parametrize("strategy", [{}, {"eval_strategy": "steps", "eval_steps": 5}])
def test_there_is_an_evaluation_at_the_end_if_the_first_one_is_delayed_too_far(
    strategy: dict[str, Any], tmp_path: Path
) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"eval_delay": 100, **strategy}))
    result, _ = fine_tune(task, task.candidates[0], tmp_path / "out")
    assert [point["step"] for point in result["curve"]] == [0, 12]
    (found,) = forecast(collect(task), task, task.candidates)
    assert [point["step"] for point in found.curve] == [0, 12]


class _Failing(TrainerCallback):
    __module__ = "transformers.integrations.of_a_tracker"

    def on_log(self, *_: Any, **__: Any) -> None:
        raise ConnectionError("the server is gone")


def test_a_tracker_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    (candidate,) = task.candidates
    said: list[str] = []
    run, _ = run_trainer(
        build_peft_model(task, candidate, 0),
        candidate.training_arguments(tmp_path / "out", **loop_arguments({}), save_strategy="no"),
        task.train,
        task.eval,
        task.compute_metrics,
        collator=task.collator,
        callbacks=[_Failing()],
        notify=said.append,
    )
    assert run.final["step"] == 12
    assert said == ["the tracker _Failing failed (the server is gone): the run continues without it"]


def test_an_adapter_that_cannot_be_uploaded_is_kept(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"push_to_hub": True, "hub_token": "secret", "max_steps": 1}))
    said: list[str] = []
    result, _ = fine_tune(task, task.candidates[0], tmp_path / "out", notify=said.append)
    adapter = tmp_path / "out" / "train" / "base" / "adapter"
    assert (adapter / "adapter_model.safetensors").exists() and result["final"]["step"] == 1
    assert len(said) == 1 and "was not uploaded" in said[0] and str(adapter) in said[0]
    assert "secret" not in (adapter.parent / "result.json").read_text()


def test_eva_is_initialised_from_the_training_examples(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, peft={"init_lora_weights": "eva"}, training={"max_steps": 1}))
    eva = build_peft_model(task, task.candidates[0], 0)
    name = "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.default.weight"
    a = eva.get_parameter(name).detach()
    rows = a / a.norm(dim=1, keepdim=True)
    assert (rows @ rows.T).sub(rows.new_ones(len(rows)).diag()).abs().max() < 1e-3, (
        "right singular vectors of the inputs"
    )
    result, _ = fine_tune(task, task.candidates[0], tmp_path / "out")
    assert result["peft"]["init_lora_weights"] == "eva"


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, False),
        ({"optim": "schedule_free_adamw"}, True),  # it evaluates other weights than it trains
        ({"lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"}, True),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch"}, True),
        ({"lr_scheduler_type": "cosine"}, False),
    ],
)
def test_runs_that_depend_on_their_evaluations(keys: dict[str, Any], expected: bool) -> None:
    assert depends_on_evaluations(TrainingArguments("unused", report_to="none", **keys)) is expected
