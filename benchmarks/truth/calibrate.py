"""Learns the correction of simulated runs from real ones: writes ``src/foretune/forecast/calibration.json``.

    python benchmarks/truth/calibrate.py

Reads what ``gather`` found of every task in ``benchmarks/results/truth``. Tasks with another model are left out, so
that they show how the correction carries over.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from truth.gather import RESULTS, read_tasks, simulation

import foretune.forecast.calibration as calibration
from foretune.forecast.compare import Z_90
from foretune.results import write_json

SHIFT = {  # which evidence moves a quantity; chosen on tasks left out
    "eval_metric": ("learnt", "fall"),
    "eval_loss": ("changes", "overfit", "loss_fall"),
    "train_loss": ("gap",),
}
SPREAD = ("constant", "correlation", "gap", "unstable", "followed", "blind")
RIDGE = 0.3  # on standardised evidence, so that few runs do not make large weights
FAR = 2.5  # robust standard deviations from the correction, beyond which an error counts as one of so many (Huber)
ROUNDS = 20  # to find which errors these are
# of runs that were not begun, and of simulations of before, whose weights change less than what this is for
UNKNOWN = {"followed": None, "change_before_learning": 0.0}
Weights = dict[str, dict[str, dict[str, float]]]


def fit(tasks: Sequence[dict[str, Any]]) -> Weights:
    """Weights of every quantity: robust least squares for the shift, maximum likelihood for the spread.

    The spread's constant is then raised or lowered until intervals of tasks that were left out cover 90% of their
    runs: on tasks that a shift was fitted to, its errors are too small.
    """
    found: Weights = {}
    for quantity in calibration.QUANTITIES:
        known = [rows(task, quantity) for task in tasks]
        ratios = []
        for left_out, (evidence, errors) in enumerate(known):
            shift, spread = predict(fit_one(quantity, known[:left_out] + known[left_out + 1 :]), evidence)
            ratios.append(np.abs(errors - shift) / spread)
        found[quantity] = fit_one(quantity, known)
        found[quantity]["spread"]["constant"] += math.log(float(np.quantile(np.concatenate(ratios), 0.9)) / Z_90)
    return found


def learnt_on(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Those that a correction is learnt on: tasks with another model show how it carries over."""
    return [task for task in tasks if task["model"] == "minilm"]


def rows(task: dict[str, Any], quantity: str) -> tuple[np.ndarray, np.ndarray]:
    """Evidence (runs, all of its names) and what real runs added to their seed's simulation on the quantity's scale."""
    on = calibration.scale(quantity, task["metric_name"])
    evidence, errors = [], []
    for run in task["runs"]:
        simulated = simulation(task, run["candidate"], run["seed"])
        if simulated is None or run[quantity] is None:
            continue
        known = [evidence_of(simulated, task)]
        before = evidence_of(simulated | {"followed": None}, task)
        if before["blind"] and not known[0]["blind"]:  # what is known of it if it is not begun
            known.append(before)
        evidence += [list(each.values()) for each in known]
        errors += [on.to(run[quantity]) - on.to(simulated[quantity])] * len(known)
    return np.array(evidence), np.array(errors)


def evidence_of(simulated: dict[str, Any], task: dict[str, Any]) -> dict[str, float]:
    """The evidence about a gathered simulation of a task."""
    return calibration.evidence(known_of(simulated, task))


def known_of(simulated: dict[str, Any], task: dict[str, Any]) -> calibration.Simulation:
    """What is known of a gathered simulation of a task."""
    of_task = ("guess", "guess_loss", "metric_name", "outputs", "frozen")
    known = UNKNOWN | simulated | {name: task[name] for name in of_task}
    return calibration.Simulation(**{name: known[name] for name in calibration.Simulation._fields})


NAMES = tuple(
    calibration.evidence(
        calibration.Simulation(0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.5, 0.5, 1.0, "accuracy", 2, 0.0, 0.0)
    )
)


def fit_one(quantity: str, known: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, dict[str, float]]:
    """Weights of one quantity from the evidence and errors of some tasks."""
    evidence, errors = map(np.concatenate, zip(*known, strict=True))
    x = evidence[:, [NAMES.index(name) for name in SHIFT[quantity]]]
    size = np.sqrt(np.square(x).mean(0)) + 1e-12
    begun = evidence[:, NAMES.index("blind")] == 0  # others only widen error bars
    scaled = (x / size)[begun]
    inverse = np.linalg.inv(scaled.T @ scaled + RIDGE * np.eye(len(size))) @ scaled.T
    near = errors
    for _ in range(ROUNDS):
        shift = inverse @ near[begun] / size
        left = errors - x @ shift
        far = FAR * 1.4826 * float(np.median(np.abs(left)))
        near = x @ shift + np.clip(left, -far, far)
    s = evidence[:, [NAMES.index(name) for name in SPREAD]]

    def loss(weights: np.ndarray) -> float:
        log_sigma = s @ weights
        penalty = RIDGE * np.square(weights[1:]).sum() / len(left)  # few runs are unstable
        ratio = np.abs(left) * np.exp(-log_sigma)
        return float((log_sigma + np.where(ratio < FAR, ratio**2, FAR * (2 * ratio - FAR)) / 2).mean() + penalty)

    start = np.array([math.log(float(left.std()) + 1e-6), *[0.0] * (len(SPREAD) - 1)])
    spread = minimize(loss, start, method="BFGS").x
    return {
        "shift": dict(zip(SHIFT[quantity], map(float, shift), strict=True)),
        "spread": dict(zip(SPREAD, map(float, spread), strict=True)),
    }


def predict(weights: dict[str, dict[str, float]], evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and spread of every row."""
    found = [
        calibration.corrections(dict(zip(NAMES, map(float, row), strict=True)), {"one": weights})["one"]
        for row in evidence
    ]
    return np.array([each.shift for each in found]), np.array([each.spread for each in found])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    tasks = learnt_on(read_tasks())
    content = {
        "learnt_by": "python benchmarks/truth/calibrate.py",
        "tasks": [task["name"] for task in tasks],
        "runs": sum(len(task["runs"]) for task in tasks),
        "weights": fit(tasks),
    }
    path = Path(calibration.__file__).with_name("calibration.json")
    write_json(path, content)
    print(f"wrote {path} from {RESULTS}")
