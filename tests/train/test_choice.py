"""Which model a run keeps: forecast and real run choose by the rule of Trainer, and describe that model."""

from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run

from foretune.forecast.forecast import forecast
from foretune.tangents import all_outputs, collect
from foretune.task import load_task
from foretune.train import fine_tune, load_adapter
from foretune.train.choice import kept_point

BEST: dict[str, Any] = {"load_best_model_at_end": True, "eval_strategy": "epoch", "save_strategy": "epoch"}


def curve(*values: tuple[float, float]) -> list[Any]:
    """Points that are six steps apart, with an eval loss and a metric."""
    return [
        {"step": 6 * k, "epoch": k, "train_loss": None, "eval_loss": loss, "eval_metric": metric}
        for k, (loss, metric) in enumerate(values)
    ]


POINTS = curve((0.1, 0.9), (0.7, 0.5), (0.5, 0.6), (0.6, 0.8), (0.9, 0.7))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, 4),
        (BEST, 2),  # the point before training is the best one, but has no checkpoint
        (BEST | {"metric_for_best_model": "accuracy"}, 3),
        (BEST | {"metric_for_best_model": "eval_metric", "greater_is_better": False}, 1),
        (BEST | {"metric_for_best_model": "loss", "greater_is_better": True}, 4),
        (BEST | {"save_strategy": "steps", "save_steps": 18}, 4),  # the best one so far has no checkpoint
        (BEST | {"save_strategy": "best"}, 2),
    ],
)
def test_the_checkpoint_is_chosen_by_the_rule_of_trainer(given: dict[str, Any], expected: int) -> None:
    assert kept_point(POINTS, given) == expected


@pytest.mark.parametrize("by", ["loss", "accuracy", "eval_accuracy"])
def test_the_result_describes_the_model_that_is_saved(by: str, tmp_path: Path) -> None:
    training = {"learning_rate": 0.05, "num_train_epochs": 4, "metric_for_best_model": by, **BEST}
    task = load_task(write_tiny_run(tmp_path, training=training))
    (candidate,) = task.candidates
    result, _ = fine_tune(task, candidate, tmp_path / "out")
    points = result["curve"][1:]
    best = min(points, key=lambda p: p["eval_loss"]) if by == "loss" else max(points, key=lambda p: p["eval_metric"])
    assert result["final"]["step"] == best["step"] and result["final"]["eval_loss"] == best["eval_loss"]
    assert kept_point(result["curve"], candidate.training) == result["curve"].index(best)
    network = load_adapter(task, tmp_path / "out" / "train" / "base" / "adapter").network
    metrics = task.compute_metrics(all_outputs(network, task, task.eval), task.eval["labels"])
    assert metrics["eval_metric"] == pytest.approx(best["eval_metric"])


def test_the_forecast_describes_the_model_that_is_kept(tmp_path: Path) -> None:
    training = {"learning_rate": 0.05, "num_train_epochs": 4, **BEST}
    task = load_task(write_tiny_run(tmp_path, training=training))
    (found,) = forecast(collect(task), task, task.candidates)
    entry = found.to_json()
    losses = [point["eval_loss"] for point in found.curve[1:]]
    assert entry["predicted"]["eval_loss"] == found.eval_loss == min(losses)
    assert entry["predicted"]["step"] == found.curve[1 + losses.index(min(losses))]["step"]
    last = found.curve[-1]["eval_metric_std"]
    assert last is not None and entry["predicted"]["eval_metric_std"] >= last, "the choice is as uncertain as the end"
