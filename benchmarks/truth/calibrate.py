"""Learn the correction of simulated runs from real runs: writes ``src/foretune/forecast/calibration.json``.

    python benchmarks/truth/calibrate.py

Reads the tasks that ``gather.py`` wrote to ``benchmarks/results/truth``. Tasks with another model than MiniLM are left
out, so that they show how the correction carries over.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import minimize

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from truth.gather import RESULTS, read_tasks, simulation

import foretune.forecast.calibration as calibration
from foretune.forecast.compare import Z_90
from foretune.results import write_json

SHIFT = {  # which evidence shifts a quantity; chosen on tasks that were left out
    "eval_metric": ("learnt", "fall"),
    "eval_loss": ("changes", "overfit", "loss_fall"),
    "train_loss": ("gap",),
}
SPREAD = ("constant", "correlation", "gap", "unstable", "followed", "blind")
RIDGE = 0.3  # on standardised evidence, so that a few runs do not lead to large weights
FAR = 2.5  # robust standard deviations; larger errors are clipped to it (Huber)
ROUNDS = 20  # of fitting and clipping
Weights = dict[str, dict[str, dict[str, float]]]


class Lessons(NamedTuple):
    """What the real runs of a task teach.

    Attributes:
        evidence: The evidence about every run, in the order of ``NAMES``.
        errors: What the run added to its simulation, for every quantity and on its scale; nan where it is not known.
    """

    evidence: np.ndarray
    errors: dict[str, np.ndarray]

    def of(self, quantity: str) -> tuple[np.ndarray, np.ndarray]:
        """Evidence and errors of the runs of which a quantity is known."""
        known = ~np.isnan(self.errors[quantity])
        return self.evidence[known], self.errors[quantity][known]


def fit(tasks: Sequence[dict[str, Any]]) -> Weights:
    """The weights of every quantity, learnt from gathered tasks."""
    return learn([lessons(task) for task in tasks])


def learn(tasks: Sequence[Lessons]) -> Weights:
    """Weights of every quantity: robust least squares for the shift, maximum likelihood for the spread.

    The spread's constant is then raised or lowered until intervals of tasks that were left out cover 90% of their
    runs: on tasks that a shift was fitted to, its errors are too small.
    """
    found: Weights = {}
    for quantity in calibration.QUANTITIES:
        known = [task.of(quantity) for task in tasks]
        ratios = []
        for left_out, (evidence, errors) in enumerate(known):
            shift, spread = predict(fit_one(quantity, known[:left_out] + known[left_out + 1 :]), evidence)
            ratios.append(np.abs(errors - shift) / spread)
        found[quantity] = fit_one(quantity, known)
        found[quantity]["spread"]["constant"] += math.log(float(np.quantile(np.concatenate(ratios), 0.9)) / Z_90)
    return found


def learnt_on(tasks: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tasks that the correction is learnt on: those of MiniLM."""
    return [task for task in tasks if task["model"] == "minilm"]


def lessons(task: dict[str, Any]) -> Lessons:
    """Evidence about every real run whose seed was simulated, and what the run added on each quantity's scale."""
    scales = {quantity: calibration.scale(quantity, task["metric_name"]) for quantity in calibration.QUANTITIES}
    evidence: list[list[float]] = []
    errors: dict[str, list[float]] = {quantity: [] for quantity in scales}
    for run in task["runs"]:
        simulated = simulation(task, run["candidate"], run["seed"])
        if simulated is None:
            continue
        known = [evidence_of(simulated, task)]
        unbegun = evidence_of(simulated | {"followed": None}, task)
        if unbegun["blind"] and not known[0]["blind"]:  # the evidence if its beginning had not been made
            known.append(unbegun)
        evidence += [list(each.values()) for each in known]
        for quantity, on in scales.items():
            true = run[quantity]
            error = np.nan if true is None else on.to(true) - on.to(simulated[quantity])
            errors[quantity] += [error] * len(known)
    return Lessons(np.array(evidence), {quantity: np.array(values) for quantity, values in errors.items()})


def evidence_of(simulated: dict[str, Any], task: dict[str, Any]) -> dict[str, float]:
    """The evidence about a gathered simulation of a task."""
    return calibration.evidence(known_of(simulated, task))


def known_of(simulated: dict[str, Any], task: dict[str, Any]) -> calibration.Simulation:
    """A gathered simulation with the facts of its task."""
    of_task = ("guess", "guess_loss", "metric_name", "outputs", "frozen")
    known = simulated | {name: task[name] for name in of_task}
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
    begun = evidence[:, NAMES.index("blind")] == 0  # the other rows only widen error bars
    scaled = (x / size)[begun]
    inverse = np.linalg.inv(scaled.T @ scaled + RIDGE * np.eye(len(size))) @ scaled.T
    near = errors
    for _ in range(ROUNDS):
        shift = inverse @ near[begun] / size
        left = errors - x @ shift
        far = FAR * 1.4826 * float(np.median(np.abs(left)))
        near = x @ shift + np.clip(left, -far, far)
    spread = fit_spread(evidence[:, [NAMES.index(name) for name in SPREAD]], left)
    return {
        "shift": dict(zip(SHIFT[quantity], map(float, shift), strict=True)),
        "spread": dict(zip(SPREAD, map(float, spread), strict=True)),
    }


def fit_spread(evidence: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Weights of log σ that maximise the likelihood of the errors that a shift leaves.

    Errors beyond ``FAR`` σ count by their size instead of its square. A ridge holds all weights but the constant, as
    few runs collapse. The problem is convex.
    """
    ridge = np.array([0.0, *[RIDGE] * (evidence.shape[1] - 1)])

    def ratio(weights: np.ndarray) -> np.ndarray:
        return np.abs(left) * np.exp(-(evidence @ weights))

    def loss(weights: np.ndarray) -> tuple[float, np.ndarray]:
        r = ratio(weights)
        value = evidence @ weights + np.where(r < FAR, r**2, FAR * (2 * r - FAR)) / 2
        gradient = evidence.T @ (1 - np.where(r < FAR, r**2, FAR * r)) + 2 * ridge * weights
        return float(value.sum() + ridge @ weights**2) / len(left), gradient / len(left)

    def curvature(weights: np.ndarray) -> np.ndarray:
        r = ratio(weights)
        second = np.where(r < FAR, 2 * r**2, FAR * r)
        return (evidence.T @ (second[:, None] * evidence) + np.diag(2 * ridge)) / len(left)

    start = np.array([math.log(float(left.std()) + 1e-6), *[0.0] * (len(ridge) - 1)])
    found = minimize(loss, start, jac=True, hess=curvature, method="trust-exact", options={"gtol": 1e-8})
    return np.asarray(found.x)


def predict(weights: dict[str, dict[str, float]], evidence: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shift and spread of every row, as ``foretune.forecast.calibration.corrections`` has them."""
    shift, log_spread = (
        evidence[:, [NAMES.index(name) for name in part]] @ np.array(list(part.values()))
        for part in (weights["shift"], weights["spread"])
    )
    return shift, np.exp(log_spread)


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
