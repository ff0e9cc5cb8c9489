"""Compare forecasts with real runs: how far the predictions are from what training gave.

Every number is computed over the candidates of ``forecast.json`` that also have a ``train/*/result.json``. A
statistic that cannot be computed (fewer than three pairs, a constant input) is ``None``, never nan.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from scipy.stats import kendalltau, spearmanr

from foretune.errors import InputError
from foretune.forecast.calibration import at_risk
from foretune.forecast.truths import by_reason, real_runs
from foretune.results import provenance, read_json, write_json

Z_90 = 1.645  # half-width of a 90% normal band in standard deviations
POINTS = 0.03  # "within three points" of a metric between 0 and 1
BEHIND = 1e6  # larger than any difference of metrics: subtracting it puts a candidate behind all others
MIN_PAIRS = 3  # a rank correlation of two pairs is always ±1

Pair = tuple[dict[str, Any], list[dict[str, Any]]]  # a candidate of forecast.json, and its real results by seed

_QUANTITIES = ("eval_metric", "eval_loss", "train_loss")
_SHARES = ("accuracy", "f1", "precision", "recall", "exact_match", "auc")
_LOWER_IS_BETTER = ("loss", "mse", "mae", "error", "perplexity")
_RANKERS = {  # simple scores that people rank by: their place in forecast.json, and the sign that puts the best highest
    "trainable_parameters": ("cost", "trainable_parameters", 1),
    "trace": ("kernel", "trace", 1),
    "condition_number": ("kernel", "condition_number", -1),
    "alignment": ("kernel", "alignment", 1),
}


def is_share(metric_name: str | None) -> bool:
    """Whether the metric is a share between 0 and 1, which people read in percent, such as accuracy or F1."""
    return any(part in (metric_name or "").lower() for part in _SHARES)


def higher_is_better(metric_name: str | None) -> bool:
    """Whether a larger value of the metric is better: false for losses, errors and perplexity."""
    name = (metric_name or "").lower().removeprefix("eval_").removeprefix("neg_")
    return (metric_name or "").lower().startswith("neg_") or not any(part in name for part in _LOWER_IS_BETTER)


def compare(directory: Path) -> dict[str, Any]:
    """Compare ``forecast.json`` with the real runs in the same directory, and write ``comparison.json``.

    - An error is predicted − true, in the metric's own unit (0.01 of accuracy is one point).
    - The regret of a ranking is the best true metric of the trained candidates − the true metric of the candidate
      ranked first. Ties are averaged, and the sign is reversed for metrics where lower is better. 0 means that the
      ranking picked the best.
    - ``cost_ratio`` is the mean of forecast seconds ÷ real seconds (training + evaluation).
    - ``collect_ratio`` is the seconds of the one collection ÷ the mean real seconds of a candidate.
    - If a candidate was trained from several seeds, the truth is the mean over the seeds that were forecast.
    - ``noise_floor`` is the error of predicting a run by the same run from another seed: ``mean |a - b|`` over pairs
      of seeds, averaged over the candidates with several seeds.

    Args:
        directory: The run directory.

    Returns:
        The content of ``comparison.json``. ``skipped`` lists the results that cannot be compared, with the reason:
        linearised runs, candidates that the forecast does not contain, other data, settings or seeds.

    Raises:
        InputError: There is no forecast, or none of its candidates was trained.
    """
    start = time.perf_counter()
    directory = Path(directory)
    forecast = read_json(directory / "forecast.json", f"run: foretune forecast run.yaml -o {directory}")
    runs, skipped = real_runs(directory, forecast)
    pairs = [(run.candidate, run.results) for run in runs]
    with_all_seeds = [(run.candidate, run.all_seeds) for run in runs]
    if not pairs:
        names = ", ".join(str(candidate["name"]) for candidate in forecast["candidates"]) or "none"
        why = "".join(f"; {line}" for line in by_reason(skipped))
        raise InputError(
            str(directory / "train"),
            f"no candidate of the forecast has a real training run (candidates: {names}){why}",
            f"run: foretune train run.yaml --candidate NAME -o {directory}",
        )
    rows = [_row(candidate, result) for candidate, result in pairs]
    metric_name = pairs[0][0]["predicted"].get("metric_name")
    comparison = {
        **provenance(forecast.get("seed") or 0, time.perf_counter() - start),
        "metric_name": metric_name,
        "candidates": rows,
        "summary": {
            **_summary(rows, "eval_metric", higher_is_better(metric_name), is_share(metric_name)),
            **_cost(pairs, forecast.get("collect") or {}),
            "noise_floor": _noise_floor(with_all_seeds, "eval_metric"),
            "eval_loss": _summary(rows, "eval_loss", higher=False, share=False)
            | {"noise_floor": _noise_floor(with_all_seeds, "eval_loss")},
        },
        "rankers": _rankers(pairs, higher_is_better(metric_name)),
        "skipped": skipped,
    }
    write_json(directory / "comparison.json", comparison)
    return comparison


def is_at_risk(candidate: Mapping[str, Any]) -> bool:
    """Whether the run of an entry of ``forecast.json`` may still collapse, see ``calibration.at_risk``."""
    beginning = candidate.get("beginning") or {}
    return at_risk(bool(candidate.get("may_collapse")), beginning.get("followed"))


def worth(metric: float, std: float | None, risky: bool, unstable: bool, higher: bool) -> float:
    """Return the value by which a forecast is ranked.

    That value is the metric. For a run that may still collapse it is the worse end of the metric's 90% interval. A run
    that is expected to collapse comes behind all others.

    Args:
        metric: The forecast metric.
        std: Its standard deviation, if there is one.
        risky: Whether the run may still collapse, see ``calibration.at_risk``.
        unstable: Whether this run is expected to collapse.
        higher: Whether a higher metric is better.

    Returns:
        The value, in the metric's unit.
    """
    loss = Z_90 * (std or 0.0) * risky + BEHIND * unstable
    return metric - loss if higher else metric + loss


def _row(candidate: dict[str, Any], results: list[dict[str, Any]]) -> dict[str, Any]:
    """The predicted and the true values of one candidate."""
    predicted = {key: _number(candidate["predicted"].get(key)) for key in (*_QUANTITIES, "eval_metric_std")}
    true = mean_final(results) | {"runs": len(results)}
    error = {key: _minus(predicted[key], true[key]) for key in _QUANTITIES[:2]}
    miss, std = error["eval_metric"], predicted["eval_metric_std"]
    return {
        "name": candidate["name"],
        "may_collapse": bool(candidate.get("may_collapse")),
        "at_risk": is_at_risk(candidate),
        "unstable": bool(candidate.get("unstable")),
        "predicted": predicted,
        "true": true,
        "error": error,
        "within_interval": None if miss is None or std is None else abs(miss) <= Z_90 * std,
    }


def mean_final(results: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Average the final values of a candidate's real runs.

    Args:
        results: The ``result.json`` of every seed.

    Returns:
        The means, and the standard deviation of the metric if there are several runs. A value that some run lacks is
        None, because a mean over fewer seeds would be misleading.
    """
    metrics = _finals(results, "eval_metric")
    return {key: _mean(_finals(results, key)) for key in _QUANTITIES} | {
        "eval_metric_std": stdev(metrics) if len(metrics) > 1 else None
    }


def _finals(results: Sequence[dict[str, Any]], key: str) -> list[float]:
    """A final value of every run; an empty list if some run lacks it."""
    values = [_number((result.get("final") or {}).get(key)) for result in results]
    return [] if None in values else [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None


def _noise_floor(pairs: list[Pair], key: str) -> float | None:
    """Mean absolute difference of two seeds of a candidate, over the candidates with several seeds."""
    runs = [_finals(results, key) for _, results in pairs]
    return _mean([fmean(abs(a - b) for a, b in combinations(values, 2)) for values in runs if len(values) > 1])


def _number(value: float | int | None) -> float | None:
    return None if value is None else float(value)


def _minus(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other


def _summary(rows: list[dict[str, Any]], quantity: str, higher: bool, share: bool) -> dict[str, Any]:
    """The statistics of one predicted quantity, over the candidates that have a predicted and a true value."""
    complete = [row for row in rows if row["error"][quantity] is not None]
    predicted = [row["predicted"][quantity] for row in complete]
    true = [row["true"][quantity] for row in complete]
    error = np.array([row["error"][quantity] for row in complete], dtype=float)
    ranked = predicted
    if quantity == "eval_metric":
        risks = [(row["predicted"]["eval_metric_std"], row["at_risk"], row["unstable"]) for row in complete]
        ranked = [worth(value, *risk, higher) for value, risk in zip(predicted, risks, strict=True)]
    # the tolerance covers rounding: 0.80 − 0.77 must count as three points
    within = float(np.mean(np.abs(error) <= POINTS + 1e-12)) if share and complete else None
    return {
        "n": len(complete),
        **_correlations(ranked, true),
        "mean_absolute_error": float(np.abs(error).mean()) if complete else None,
        "bias": float(error.mean()) if complete else None,
        "share_within_3_points": within,
        "regret": _regret(ranked, true, higher, ranked_by_higher=higher),
    }


def _correlations(one: Sequence[float], other: Sequence[float]) -> dict[str, float | None]:
    """Spearman's and Kendall's rank correlation; scipy handles ties (average ranks, tau-b)."""
    if len(one) < MIN_PAIRS or len(set(one)) == 1 or len(set(other)) == 1:
        return {"spearman": None, "kendall": None}
    return {
        "spearman": float(spearmanr(one, other).statistic),
        "kendall": float(kendalltau(one, other).statistic),
    }


def _regret(
    scores: Sequence[float], true: Sequence[float], higher: bool, ranked_by_higher: bool = True
) -> float | None:
    """What choosing by ``scores`` loses against the best choice; None if there are fewer than two candidates."""
    if len(true) < 2:
        return None
    score = np.array(scores, dtype=float) * (1 if ranked_by_higher else -1)
    value = np.array(true, dtype=float) * (1 if higher else -1)
    return float(value.max() - value[score == score.max()].mean()) + 0.0


def _cost(pairs: list[Pair], collect: dict[str, Any]) -> dict[str, float | None]:
    """The time of forecasting and of collecting, relative to the time of the real runs."""
    ratios, real_seconds = [], []
    for candidate, results in pairs:
        costs = [result.get("cost") or {} for result in results]
        real = fmean((cost.get("seconds") or 0.0) + (cost.get("eval_seconds") or 0.0) for cost in costs)
        predicting = (candidate.get("cost") or {}).get("seconds")
        if real > 0:
            real_seconds.append(real)
            ratios += [] if predicting is None else [predicting / real]
    collecting = collect.get("seconds")
    return {
        "cost_ratio": float(np.mean(ratios)) if ratios else None,
        "collect_ratio": None if collecting is None or not real_seconds else float(collecting / np.mean(real_seconds)),
    }


def _rankers(pairs: list[Pair], higher: bool) -> dict[str, dict[str, Any]]:
    """How well simple scores, such as the trace of the kernel, order the same candidates by their true metric."""
    rankers = {}
    for name, (part, key, sign) in _RANKERS.items():
        scored = [
            (float(sign * score), float(true))
            for candidate, results in pairs
            if (score := (candidate.get(part) or {}).get(key)) is not None
            and (true := _mean(_finals(results, "eval_metric"))) is not None
        ]
        scores, values = [score for score, _ in scored], [true for _, true in scored]
        goodness = [value if higher else -value for value in values]
        rankers[name] = {
            "n": len(scored),
            **_correlations(scores, goodness),
            "regret": _regret(scores, values, higher),
        }
    return rankers
