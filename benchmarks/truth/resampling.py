"""Bootstrap intervals of Kendall's tau and of regret: tasks, and in each task candidates, drawn with replacement.

A draw is kept as how often it has each candidate. The statistics of all draws of a task are then a few products of
matrices, which is hundreds of times faster than the statistics of ``truth.metrics`` on the candidates drawn.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from truth.metrics import Prediction, Truth, known_mean

DRAWS = 1000
Counts = Int[np.ndarray, "d c"]  # of draws and candidates


def bootstrap(
    truths: Sequence[Truth], predictors: Mapping[str, Sequence[Prediction]], *, seed: int = 0
) -> dict[str, dict[str, Float[np.ndarray, "draws t"]]]:
    """Kendall's tau and regret of every predictor in every draw, task by task; nan where one is undefined.

    All predictors see the same draws, so that differences of them are paired.
    """
    drawn = _draws([len(truth.candidates) for truth in truths], seed)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, predictions in predictors.items():
        found[name] = {key: np.full((DRAWS, len(truths)), np.nan) for key in RESAMPLED}
        for i, (truth, prediction) in enumerate(zip(truths, predictions, strict=True)):
            places, counts = drawn[i]
            for key, statistic in RESAMPLED.items():
                found[name][key][places] = statistic(truth, prediction, counts)
    return found


def interval(draws: Float[np.ndarray, "draws t"]) -> tuple[float, float]:
    """The central 95% of the draws' means over tasks; a task where the statistic is undefined does not count."""
    known = known_mean(draws)
    known = known[~np.isnan(known)]
    return (float(np.quantile(known, 0.025)), float(np.quantile(known, 0.975))) if len(known) else (np.nan, np.nan)


def _draws(sizes: Sequence[int], seed: int) -> list[tuple[tuple[np.ndarray, np.ndarray], Counts]]:
    """Every task's draws and places in them, and how often each of its candidates was drawn there."""
    generator = np.random.default_rng(seed)
    places: list[list[tuple[int, int]]] = [[] for _ in sizes]
    counts: list[list[np.ndarray]] = [[] for _ in sizes]
    for draw in range(DRAWS):
        for place, i in enumerate(generator.integers(len(sizes), size=len(sizes))):
            places[i].append((draw, place))
            counts[i].append(np.bincount(generator.integers(sizes[i], size=sizes[i]), minlength=sizes[i]))
    return [
        (tuple(np.array(where, dtype=int).reshape(-1, 2).T), np.array(often, dtype=int).reshape(-1, size))
        for where, often, size in zip(places, counts, sizes, strict=True)
    ]


def _kendall(truth: Truth, prediction: Prediction, counts: Counts) -> Float[np.ndarray, " d"]:
    """Kendall's tau-b of predictions with the runs of a seed, averaged over seeds."""

    def tau(said: np.ndarray, true: np.ndarray, known: np.ndarray) -> np.ndarray:
        one, other = (np.sign(x[:, None] - x[None]) for x in (np.where(known, said, 0), np.where(known, true, 0)))
        often = (counts * known).astype(float)

        def total(pairs: np.ndarray) -> np.ndarray:
            return (often @ pairs * often).sum(1)

        ordered = np.sqrt(total(one**2) * total(other**2))
        return np.divide(total(one * other), ordered, out=np.full(len(often), np.nan), where=ordered > 0)

    return _over_seeds(prediction.rank, truth.metric, counts, tau, least=3)


def _regret(truth: Truth, prediction: Prediction, counts: Counts) -> Float[np.ndarray, " d"]:
    """Best mean over seeds minus that of the candidate ranked first, averaged over ties and seeds."""

    def lost(said: np.ndarray, true: np.ndarray, known: np.ndarray) -> np.ndarray:
        present = (counts > 0) & known
        best = np.where(present, true, -np.inf).max(1)
        first = present & (said == np.where(present, said, -np.inf).max(1, keepdims=True))
        often = counts * first
        return best - (often * np.where(known, true, 0)).sum(1) / np.maximum(often.sum(1), 1)

    means = np.broadcast_to(truth.mean[:, None], prediction.rank.shape)
    return _over_seeds(prediction.rank, means, counts, lost, least=2)


def _over_seeds(
    said: Float[np.ndarray, "c s"],
    true: Float[np.ndarray, "c s"],
    counts: Counts,
    of: Callable[[np.ndarray, np.ndarray, Bool[np.ndarray, " c"]], np.ndarray],
    least: int,
) -> Float[np.ndarray, " d"]:
    """The mean of a statistic over the seeds of which a draw has at least so many candidates."""
    columns = []
    for one, other in zip(said.T, true.T, strict=True):
        known = ~np.isnan(one) & ~np.isnan(other)
        enough = (counts * known).sum(1) >= least
        values = of(one, other, known) if enough.any() else np.full(len(counts), np.nan)
        columns.append(np.where(enough, values, np.nan))
    return known_mean(np.stack(columns, 1))


RESAMPLED = {"kendall": _kendall, "regret": _regret}
