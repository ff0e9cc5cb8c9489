"""What foretune says, from the simulations that were gathered: as simulated, and as corrected on other tasks."""

from collections.abc import Sequence
from typing import Any

from truth.calibrate import Weights, evidence_of, fit
from truth.grid import TASKS

from foretune.forecast.calibration import corrected, corrections, unstable
from foretune.forecast.compare import BEHIND, Z_90


def simulated(task: dict[str, Any]) -> dict[str, Any]:
    """The simulated runs as they are."""
    return _scores(
        task,
        {
            name: {"rank": found["eval_metric"], "metric": found["eval_metric"], "loss": found["eval_loss"]}
            for name, found in task["simulated"].items()
        },
    )


def forecast(task: dict[str, Any], weights: Weights) -> dict[str, Any]:
    """What ``foretune forecast`` says with these weights."""
    scores = {}
    for name, found in task["simulated"].items():
        said = corrected(found, corrections(evidence_of(found, task), weights), 1.0, task["metric_name"])
        metric, half = said["eval_metric"], Z_90 * said["eval_metric_std"]
        flagged = unstable(found["largest_step"])
        scores[name] = {
            "rank": metric - BEHIND * flagged,
            "metric": metric,
            "loss": said["eval_loss"],
            "metric_interval": (metric - half, metric + half),
            "flagged": flagged,
        }
    return _scores(task, scores)


def left_out(tasks: Sequence[dict[str, Any]], learnt_on: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The forecasts of every task with weights learnt on the other tasks only."""
    return [forecast(task, fit([other for other in learnt_on if not _related(task, other)])) for task in tasks]


def _related(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two tasks have the same texts."""
    return TASKS[one["name"]].builder == TASKS[other["name"]].builder


def _scores(task: dict[str, Any], scores: dict[str, dict[str, Any]]) -> dict[str, Any]:
    for name, score in scores.items():
        score["seconds"] = task["simulated"][name]["seconds"]
    return {"candidates": scores, "shared_seconds": (task["collect"] or {"seconds": 0.0})["seconds"]}
