"""A simulated run starts where the real one starts, sees the same batches, and agrees to first order."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_tiny_run
from transformers import TrainingArguments

from foretune.cli.console import progress_bar
from foretune.forecast.costs import num_steps
from foretune.forecast.expected import expected_metrics
from foretune.forecast.forecast import forecast
from foretune.forecast.run import forecast_run
from foretune.forecast.simulate import CHECKPOINTING, collate, index_datasets, simulate
from foretune.forecast.starts import Starts
from foretune.linear.tangent_model import TangentModel
from foretune.tangents import Tangents, collect, read_adapters
from foretune.task import Candidate, Task, load_task
from foretune.train import build_peft_model, loop_arguments, run_trainer
from foretune.train.put_off import TOGETHER

SCHEDULE = {
    "gradient_accumulation_steps": 2,
    "label_smoothing_factor": 0.1,
    "warmup_steps": 2,
    "weight_decay": 0.1,
}


def loaded(folder: Path, **training: Any) -> tuple[Task, Candidate, Tangents]:
    run = write_tiny_run(folder, peft={"target_modules": "all-linear"}, training=training)
    task = load_task(run)
    return task, task.candidates[0], collect(task, dtype=torch.float32)


def real_run(task: Task, candidate: Candidate, folder: Path) -> tuple[Any, list[list[int]], Any]:
    """Train for real, and record the examples of every training batch, recognised by their tokens."""
    known = {tuple(row["input_ids"]): number for number, row in enumerate(task.train)}
    seen: list[list[int]] = []

    def spy(rows: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append([known.get(tuple(row["input_ids"]), -1) for row in rows])
        return task.collator(rows)

    model = build_peft_model(task, candidate, candidate.seed)
    args = candidate.training_arguments(folder, **loop_arguments({}), save_strategy="no")
    run, _ = run_trainer(model, args, task.train, task.eval, task.compute_metrics, collator=spy)
    return run, [batch for batch in seen if -1 not in batch], model


def test_a_batch_covers_all_gpus_of_the_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``Trainer`` gives every GPU of a process a batch (``DataParallel``), so a run has fewer steps."""
    task, candidate, tangents = loaded(tmp_path, per_device_train_batch_size=2, num_train_epochs=2, use_cpu=False)
    start = Starts(task, tangents).draw(candidate, 0)
    alone = simulate(tangents, task, candidate, *start, seed=0)[0].final["step"]
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 0 if args.use_cpu else 2))
    start = Starts(task, tangents).draw(candidate, 0)
    on_two = simulate(tangents, task, candidate, *start, seed=0)[0].final["step"]
    arguments = candidate.training_arguments(tmp_path)
    assert arguments.train_batch_size == 4 and num_steps(len(task.train), arguments) == on_two == math.ceil(alone / 2)


def test_a_simulation_starts_where_the_real_run_starts(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path)
    for seed in (3, 4):
        real = build_peft_model(task, candidate, seed)
        adapters, head = Starts(task, tangents).draw(candidate, seed)
        for ours, theirs in zip(adapters, read_adapters(real), strict=True):
            assert ours.name == theirs.name
            torch.testing.assert_close(ours.a, theirs.a, rtol=0, atol=0)
        wrapped = real.get_parameter("base_model.model.classifier.modules_to_save.default.weight")
        torch.testing.assert_close(head.steps[0].get_parameter("weight"), wrapped, rtol=0, atol=0)


def test_parameters_have_the_names_and_the_order_of_the_peft_model(tmp_path: Path) -> None:
    """Some optimisers, such as GrokAdamW, treat a parameter by its place in the list."""
    task, candidate, tangents = loaded(tmp_path)
    adapters, head = Starts(task, tangents).draw(candidate, 0)
    ours = list(TangentModel(tangents, adapters, head).named_parameters())
    real = [(name, p) for name, p in build_peft_model(task, candidate, 0).named_parameters() if p.requires_grad]
    assert [name for name, _ in ours if "lora" in name] == [name for name, _ in real if "lora" in name]
    assert [p.shape for _, p in ours] == [p.shape for _, p in real]


@pytest.mark.parametrize("training", [{}, SCHEDULE, {"train_sampling_strategy": "group_by_length"}], ids=str)
def test_a_simulation_sees_the_batches_of_the_real_run(
    tmp_path: Path, training: dict[str, Any], monkeypatch: Any
) -> None:
    task, candidate, tangents = loaded(tmp_path, num_train_epochs=2, **training)
    _, real, _ = real_run(task, candidate, tmp_path)
    seen: list[list[int]] = []

    def spy(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        seen.append([int(row["index"]) for row in rows])
        return collate(rows)

    monkeypatch.setattr("foretune.forecast.simulate.collate", spy)
    simulate(tangents, task, candidate, *Starts(task, tangents).draw(candidate, candidate.seed), candidate.seed)
    assert [batch for batch in seen if max(batch) < tangents.num_train] == real


def test_both_models_agree_before_the_first_step(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path, num_train_epochs=1)
    real, _, _ = real_run(task, candidate, tmp_path)
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    ours, _ = simulate(tangents, task, candidate, *start, candidate.seed)
    assert ours.curve[0]["eval_loss"] == pytest.approx(real.curve[0]["eval_loss"], abs=1e-5)
    outputs = tangents.outputs[tangents.num_train :]
    assert ours.curve[0]["eval_metric"] == pytest.approx(
        expected_metrics(task, outputs, task.eval["labels"])["eval_metric"]
    )
    assert real.curve[0]["eval_metric"] == task.compute_metrics(outputs, task.eval["labels"])["eval_metric"]


@pytest.mark.parametrize("training", [{}, SCHEDULE], ids=str)
def test_small_steps_agree_with_the_real_run(tmp_path: Path, training: dict[str, Any]) -> None:
    """The first change of the eval loss is proportional to the learning rate, the disagreement to its square."""
    keys = {"num_train_epochs": 2, "optim": "sgd", "lr_scheduler_type": "constant_with_warmup"} | training
    task, candidate, tangents = loaded(tmp_path, learning_rate=1e-2, **keys)
    real, _, _ = real_run(task, candidate, tmp_path)
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    ours, _ = simulate(tangents, task, candidate, *start, candidate.seed)
    moved = real.final["eval_loss"] - real.curve[0]["eval_loss"]
    assert abs(moved) > 1e-5
    assert ours.final["eval_loss"] - ours.curve[0]["eval_loss"] == pytest.approx(moved, rel=0.05)


EVERY_STEP = {
    "eval_strategy": "steps",
    "eval_steps": 1,
    "num_train_epochs": 6,
}  # more evaluations than are made together


@pytest.mark.parametrize(
    "training",
    [
        EVERY_STEP,
        EVERY_STEP | SCHEDULE,
        EVERY_STEP | {"train_sampling_strategy": "group_by_length"},
        {"eval_strategy": "no"},
    ],
    ids=str,
)
def test_postponed_evaluations_give_the_same_results(
    tmp_path: Path, training: dict[str, Any], monkeypatch: Any
) -> None:
    task, candidate, tangents = loaded(tmp_path, **{"num_train_epochs": 1} | training)
    curves = []
    for at_once in (False, True):
        if at_once:
            monkeypatch.setattr("foretune.train.loop.depends_on_evaluations", lambda _: True)
        start = Starts(task, tangents).draw(candidate, candidate.seed)
        curves.append(simulate(tangents, task, candidate, *start, candidate.seed)[0].curve)
    assert len(curves[0]) == len(curves[1]) and (len(curves[0]) > TOGETHER) == ("eval_steps" in training)
    for later, now in zip(*curves, strict=True):
        known = [name for name, value in now.items() if value is not None]
        assert [later[name] for name in known] == pytest.approx([now[name] for name in known], rel=1e-5)


def test_a_schedule_that_needs_evaluations_gets_them(tmp_path: Path) -> None:
    """A plateau of the loss (no loss falls by 100%) lowers the learning rate, so later steps are small."""
    plateau = {"lr_scheduler_type": "reduce_lr_on_plateau", "metric_for_best_model": "loss", "greater_is_better": False}
    kwargs = {"lr_scheduler_kwargs": {"patience": 0, "threshold": 1.0, "factor": 1e-6}}
    task, candidate, tangents = loaded(tmp_path, **EVERY_STEP | plateau | kwargs)
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    losses = [point["eval_loss"] for point in simulate(tangents, task, candidate, *start, candidate.seed)[0].curve]
    assert losses[-1] == pytest.approx(losses[-2], abs=1e-6) and losses[0] != pytest.approx(losses[1], abs=1e-6)


@pytest.mark.parametrize("name", CHECKPOINTING)
def test_recomputing_activations_changes_no_forecast(name: str, tmp_path: Path, recwarn: Any) -> None:
    task, candidate, tangents = loaded(tmp_path)
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    plain, _ = simulate(tangents, task, candidate, *start, candidate.seed)
    assert not [each for each in recwarn if "`gradient_checkpointing` is deprecated" in str(each.message)]
    saving = Candidate("saving", candidate.peft, candidate.training | {name: True})
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    assert simulate(tangents, task, saving, *start, candidate.seed)[0].curve == plain.curve


def test_forecast_ranks_best_first_and_is_reproducible(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path)
    weak = Candidate("weak", candidate.peft, candidate.training | {"learning_rate": 1e-7})
    first = forecast(tangents, task, [weak, candidate])
    assert first[0].eval_metric >= first[1].eval_metric
    again = forecast(tangents, task, [weak, candidate])
    assert [each.curve for each in first] == [each.curve for each in again]


def test_every_seed_is_simulated_with_tangents_of_its_own_head(tmp_path: Path) -> None:
    """This holds for the first and for further seeds of a candidate, and for candidates with their own seed."""
    task, candidate, tangents = loaded(tmp_path)
    starts = Starts(task, tangents, lambda task, seed: collect(task, dtype=tangents.dtype))
    (found,) = forecast(starts, task, [candidate], seeds=2)
    assert starts.tangents(0) is tangents and starts.tangents(1) is not tangents
    other = Candidate("other", candidate.peft, candidate.training | {"seed": 1})
    second = task.with_seed(1)
    alone, own = (
        forecast(given, task, [other])[0]
        for given, task in ((collect(second, dtype=tangents.dtype), second), (starts, task))
    )
    assert found.runs[1].curve == alone.runs[0].curve == own.runs[0].curve
    assert own.kernel["trace"] == alone.kernel["trace"] and own.reach == alone.reach
    with pytest.raises(ValueError, match="another head"):
        forecast(tangents, task, [other])


def test_runs_that_may_collapse_are_ranked_last(tmp_path: Path, monkeypatch: Any) -> None:
    task, candidate, tangents = loaded(tmp_path, learning_rate=3e-3, num_train_epochs=6)
    monkeypatch.setattr("foretune.forecast.calibration.ASTRAY", 1.0)
    weak = Candidate("weak", candidate.peft, candidate.training | {"learning_rate": 1e-4})
    best, other = forecast(tangents, task, [weak, candidate])
    monkeypatch.setattr("foretune.forecast.calibration.STEP", 0.0)
    monkeypatch.setattr("foretune.forecast.calibration.TRAVEL", best.reach.travel - 1e-9)
    assert best.unstable and best.to_json()["unstable"] and best.reach.travel > other.reach.travel
    assert [each.candidate.name for each in forecast(tangents, task, [weak, candidate])] == [
        other.candidate.name,
        best.candidate.name,
    ]


def test_index_datasets_number_the_examples(tmp_path: Path) -> None:
    task, _, tangents = loaded(tmp_path)
    train, evaluation = index_datasets(tangents, task)
    assert train["index"] == list(range(len(task.train))) and train["labels"] == task.train["labels"]
    numbers = [i - len(task.train) for i in evaluation["index"]]
    assert sorted(numbers) == list(range(len(task.eval)))
    assert evaluation["labels"] == [task.eval["labels"][i] for i in numbers]
    rows, _ = tangents.rows(torch.tensor(list(evaluation["index"])), None)
    assert isinstance(rows, slice)  # a slice: rows are read in the order in which they are stored
    assert train["length"] == [len(ids) for ids in task.train["input_ids"]]


def test_every_further_seed_takes_one_pass(tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path), tmp_path / "out"
    one, two, again = (forecast_run(run, out, seeds=seeds, bar=progress_bar) for seeds in (1, 2, 2))
    assert two["collect"]["bytes"] == 2 * one["collect"]["bytes"] and not two["collect"]["reused"]
    assert two["candidates"][0]["predicted"]["seeds"] == [0, 1] and again["collect"]["reused"]
    assert again["candidates"][0]["predicted"] == two["candidates"][0]["predicted"]
