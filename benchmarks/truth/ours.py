"""What foretune predicts, computed from the gathered simulations: with and without the correction."""

from collections.abc import Callable, Sequence
from typing import Any

from truth.calibrate import Weights, evidence_of, fit, learn, lessons
from truth.gather import SIGNS
from truth.grid import TASKS

from foretune.forecast.calibration import at_risk, corrected, corrections, may_collapse, unstable
from foretune.forecast.compare import Z_90, worth


def simulated(task: dict[str, Any]) -> dict[str, Any]:
    """The simulated runs of every seed without a correction."""

    def score(found: dict[str, Any]) -> dict[str, Any]:
        return {"rank": found["eval_metric"], "metric": found["eval_metric"], "loss": found["eval_loss"]}

    return _scores(task, score)


def forecast(task: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """The forecast of every seed with these weights."""

    def score(found: dict[str, Any]) -> dict[str, Any]:
        without_std = found | {"eval_metric_std": None}
        said = corrected(without_std, corrections(evidence_of(found, task), weights), 1.0, task["metric_name"])
        metric, half = said["eval_metric"], Z_90 * said["eval_metric_std"]
        risky = may_collapse(*(found[sign] for sign in SIGNS))
        return {
            "rank": worth(
                metric,
                said["eval_metric_std"],
                at_risk(risky, found["followed"]),
                risky and unstable(found["followed"]),
                higher=True,
            ),
            "metric": metric,
            "loss": said["eval_loss"],
            "low": metric - half,
            "high": metric + half,
        }

    return _scores(task, score)


def left_out(tasks: Sequence[dict[str, Any]], learnt_on: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The forecasts of every task with weights learnt on the other tasks only."""
    taught = [lessons(task) for task in learnt_on]
    weights = {  # tasks with the same texts leave out the same tasks
        builder: learn([each for task, each in zip(learnt_on, taught, strict=True) if _builder(task) != builder])
        for builder in {_builder(task): None for task in tasks}
    }
    return [forecast(task, weights[_builder(task)]) for task in tasks]


def fit_without(task: dict[str, Any], others: Sequence[dict[str, Any]]) -> Weights:
    """Weights learnt on tasks with other texts than this one."""
    return fit([other for other in others if _builder(other) != _builder(task)])


def _builder(task: dict[str, Any]) -> str:
    """Where a task's texts come from."""
    return TASKS[task["name"]].builder


def _scores(task: dict[str, Any], score: Callable[[dict[str, Any]], dict[str, Any]]) -> dict[str, Any]:
    shared = (task["collect"] or {"seconds": 0.0})["seconds"]
    return {
        seed: {
            "candidates": {name: score(found) | {"seconds": found["seconds"]} for name, found in runs.items()},
            "shared_seconds": shared,
        }
        for seed, runs in task["simulated"].items()
    }
