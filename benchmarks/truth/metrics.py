"""How good predictions were: every statistic of a task.

Predictions are compared with every real run, that is with every candidate and seed. A prediction that knows the seed
is compared with the run of that seed. Statistics are means over seeds, so "another seed" is a predictor like any other.
Regret is measured on the mean over seeds, the best that is known of a candidate.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float
from scipy.stats import kendalltau, spearmanr

WITHIN = 0.03


@dataclass(frozen=True)
class Truth:
    """The real runs of a task.

    Attributes:
        candidates: Their names.
        metric: Final metric of every candidate and seed; nan where it was not trained.
        loss: Final evaluation loss of every candidate and seed; nan where it was not trained.
        seconds: Seconds of the fastest real run of every candidate.
        seeds: The seeds; empty if the columns are means.
    """

    candidates: tuple[str, ...]
    metric: Float[np.ndarray, "c s"]
    loss: Float[np.ndarray, "c s"]
    seconds: Float[np.ndarray, " c"]
    seeds: tuple[int, ...] = ()

    @property
    def mean(self) -> Float[np.ndarray, " c"]:
        """The metric's mean over the seeds that were trained; nan if none was."""
        return known_mean(self.metric)

    def averaged(self) -> "Truth":
        """Means over seeds instead of single runs."""
        return Truth(self.candidates, self.mean[:, None], known_mean(self.loss)[:, None], self.seconds)


def known_mean(values: Float[np.ndarray, "... s"]) -> Float[np.ndarray, " ..."]:
    """The mean along the last axis without nan; nan where all values are nan."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # of rows that are all nan
        return np.nanmean(values, axis=-1)


@dataclass(frozen=True)
class Prediction:
    """What a predictor said for the truth's candidates and seeds; nan where it said nothing.

    Attributes:
        rank: Higher is ranked first.
        metric: Predicted metric.
        loss: Predicted evaluation loss.
        low: Lower bound of the 90% interval of the metric.
        high: Its upper bound.
        seconds: Its cost, with the candidate's part of what all candidates share.
    """

    rank: Float[np.ndarray, "c s"]
    metric: Float[np.ndarray, "c s"]
    loss: Float[np.ndarray, "c s"]
    low: Float[np.ndarray, "c s"]
    high: Float[np.ndarray, "c s"]
    seconds: Float[np.ndarray, "c s"]

    def averaged(self) -> "Prediction":
        """Means over the seeds that the predictor was asked about."""
        return self.map(lambda values: known_mean(values)[:, None])

    def map(self, change: Callable[[np.ndarray], np.ndarray]) -> "Prediction":
        """A prediction whose arrays are all changed."""
        return Prediction(*(change(getattr(self, name)) for name in Prediction.__dataclass_fields__))


Statistic = Callable[[Truth, Prediction], float]


def correlation(of: Callable[..., tuple[float, float]], what: str, by: str) -> Statistic:
    """A rank correlation of predictions with the runs of a seed, averaged over seeds."""

    def statistic(truth: Truth, prediction: Prediction) -> float:
        predicted, runs = getattr(prediction, by), getattr(truth, what)
        return _over_seeds(predicted, runs, lambda p, t: of(p, t)[0] if len(set(p)) > 1 < len(set(t)) else np.nan)

    return statistic


def error(what: str, of: Callable[[Float[np.ndarray, " n"]], float]) -> Statistic:
    """A mean of the errors predicted − true, averaged over seeds."""

    def statistic(truth: Truth, prediction: Prediction) -> float:
        return _over_seeds(getattr(prediction, what), getattr(truth, what), lambda p, t: of(p - t))

    return statistic


def regret(truth: Truth, prediction: Prediction) -> float:
    """Best true metric minus that of the candidate ranked first, averaged over ties and seeds, on means over seeds."""

    def lost(rank: Float[np.ndarray, " n"], true: Float[np.ndarray, " n"]) -> float:
        return float(true.max() - true[rank == rank.max()].mean())

    return _over_seeds(prediction.rank, np.broadcast_to(truth.mean[:, None], prediction.rank.shape), lost, least=2)


def coverage(truth: Truth, prediction: Prediction) -> float:
    """Share of runs inside the 90% interval."""
    inside = (truth.metric >= prediction.low) & (truth.metric <= prediction.high)
    known = ~np.isnan(truth.metric) & ~np.isnan(prediction.low)
    return float(inside[known].mean()) if known.any() else np.nan


def cost(truth: Truth, prediction: Prediction) -> float:
    """Seconds of all predictions over those of the runs that they predict."""
    seconds = known_mean(prediction.seconds)
    known = ~np.isnan(truth.seconds) & ~np.isnan(seconds)
    return float(seconds[known].sum() / truth.seconds[known].sum()) if known.any() else np.nan


STATISTICS: dict[str, Statistic] = {
    "spearman": correlation(spearmanr, "metric", "rank"),
    "kendall": correlation(kendalltau, "metric", "rank"),
    "regret": regret,
    "mean_absolute_error": error("metric", lambda e: float(np.abs(e).mean())),
    "within_3_points": error("metric", lambda e: float((np.abs(e) <= WITHIN + 1e-12).mean())),
    "coverage": coverage,
    "loss_kendall": correlation(kendalltau, "loss", "loss"),
    "loss_mean_absolute_error": error("loss", lambda e: float(np.abs(e).mean())),
    "cost": cost,
}


def evaluate(truths: Sequence[Truth], predictions: Sequence[Prediction]) -> dict[str, float]:
    """Every statistic, averaged over tasks; a task where it is undefined does not count."""
    return {
        name: _mean([statistic(t, p) for t, p in zip(truths, predictions, strict=True)])
        for name, statistic in STATISTICS.items()
    }


def another_seed(truth: Truth) -> tuple[Truth, Prediction]:
    """The noise floor: the last seed's runs as the prediction of the others."""
    others = Truth(truth.candidates, truth.metric[:, :-1], truth.loss[:, :-1], truth.seconds, truth.seeds[:-1])
    nothing = np.full(others.metric.shape, np.nan)
    metric, loss, seconds = (
        np.broadcast_to(column[:, None], nothing.shape)
        for column in (truth.metric[:, -1], truth.loss[:, -1], truth.seconds)
    )
    return others, Prediction(metric, metric, loss, nothing, nothing, seconds)


def _over_seeds(
    predicted: Float[np.ndarray, "c s"],
    runs: Float[np.ndarray, "c s"],
    of: Callable[[Float[np.ndarray, " n"], Float[np.ndarray, " n"]], float],
    least: int = 3,
) -> float:
    """The mean of a statistic over the seeds that have at least so many candidates."""
    values = []
    for said, run in zip(predicted.T, runs.T, strict=True):
        known: Bool[np.ndarray, " c"] = ~np.isnan(said) & ~np.isnan(run)
        if known.sum() >= least:
            values.append(of(said[known], run[known]))
    return _mean(values)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not np.isnan(value)]
    return float(np.mean(known)) if known else np.nan
