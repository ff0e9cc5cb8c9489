"""The whole benchmark in arrays: real runs, what every predictor said of them, and how good that was."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from truth.calibrate import learnt_on
from truth.gather import prediction_of, read_fast, read_sizes, read_tasks, truth_of
from truth.metrics import Prediction, Truth, another_seed, evaluate
from truth.ours import left_out, simulated
from truth.resampling import bootstrap, interval

OURS, SIMULATED = "foretune", "as simulated"
ANOTHER_SEED, AVERAGED = "another seed", "foretune, means over seeds"


@dataclass(frozen=True)
class Benchmark:
    """Tasks with their real runs and predictions.

    Attributes:
        tasks: Those with enough candidates that were both trained and forecast.
        sizes: Those with another number of training examples.
        fast: Those with high learning rates, where runs collapse.
        truths: Real runs of ``tasks``.
        predictions: Of every predictor, for every task; ours are learnt on the other tasks.
        size_truths: Real runs of ``sizes``.
        size_forecasts: Our predictions of them.
    """

    tasks: list[dict[str, Any]]
    sizes: list[dict[str, Any]]
    fast: list[dict[str, Any]]
    truths: list[Truth]
    predictions: dict[str, list[Prediction]]
    size_truths: list[Truth]
    size_forecasts: list[Prediction]

    @classmethod
    def read(cls) -> "Benchmark":
        """The benchmark from the committed results."""
        tasks, sizes = read_tasks(), read_sizes()
        truths, size_truths = ([truth_of(task) for task in some] for some in (tasks, sizes))
        forecasts = left_out([*tasks, *sizes], learnt_on(tasks))
        said = {OURS: forecasts[: len(tasks)], SIMULATED: [simulated(task) for task in tasks]}
        names = sorted({name for task in tasks for name in task["scores"]})
        said |= {name: [task["scores"].get(name, {}) for task in tasks] for name in names}
        predictions = {name: _arrays(own, truths) for name, own in said.items()}
        return cls(
            tasks, sizes, read_fast(), truths, predictions, size_truths, _arrays(forecasts[len(tasks) :], size_truths)
        )

    @cached_property
    def by_task(self) -> dict[str, list[dict[str, float]]]:
        """Every statistic of every predictor, task by task; another seed and means over seeds are predictors too."""
        found = {
            name: [evaluate([truth], [said]) for truth, said in zip(self.truths, own, strict=True)]
            for name, own in self.predictions.items()
        }
        found[ANOTHER_SEED] = [evaluate(*([x] for x in another_seed(truth))) for truth in self.truths]
        found[AVERAGED] = [
            evaluate([truth.averaged()], [said.averaged()])
            for truth, said in zip(self.truths, self.predictions[OURS], strict=True)
        ]
        return found

    @cached_property
    def scores(self) -> dict[str, dict[str, float]]:
        """Means over tasks; a task where a statistic is undefined does not count."""
        return {
            name: {key: _mean([task[key] for task in tasks]) for key in tasks[0]}
            for name, tasks in self.by_task.items()
        }

    @cached_property
    def draws(self) -> dict[str, dict[str, np.ndarray]]:
        """Bootstrap draws of Kendall's tau and regret, task by task."""
        return bootstrap(self.truths, self.predictions)

    @property
    def rivals(self) -> list[str]:
        """The predictors of others, those with the highest Kendall's tau first."""
        names = [name for name in self.predictions if name not in (OURS, SIMULATED)]
        return sorted(names, key=lambda name: -np.nan_to_num(self.scores[name]["kendall"], nan=-2.0))

    def asked(self, name: str) -> int:
        """Of how many tasks a predictor said something."""
        return sum(not np.isnan(task["regret"]) for task in self.by_task[name])

    def lead(self, name: str) -> tuple[tuple[float, float], tuple[float, float]]:
        """95% intervals of how much higher our Kendall's tau is than another's, and how much lower our regret."""
        ours, theirs = self.draws[OURS], self.draws[name]
        return interval(ours["kendall"] - theirs["kendall"]), interval(theirs["regret"] - ours["regret"])

    def is_better_than(self, name: str) -> bool | None:
        """Whether both intervals are above zero; None if one is not known."""
        lows = [low for low, _ in self.lead(name)]
        return None if np.isnan(lows).any() else min(lows) > 0


def _arrays(scores: list[dict[str, Any]], truths: list[Truth]) -> list[Prediction]:
    return [prediction_of(own, truth) for own, truth in zip(scores, truths, strict=True)]


def _mean(values: list[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan
