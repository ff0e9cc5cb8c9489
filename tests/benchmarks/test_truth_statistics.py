"""The truth benchmark's arithmetic: statistics of given numbers, and a correction that is learnt back."""

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from truth import resampling
from truth.calibrate import evidence_of, fit
from truth.gather import ANY, prediction_of, truth_of
from truth.grid import NAMES as MODULES
from truth.grid import TASKS
from truth.metrics import STATISTICS, Prediction, Truth, another_seed, evaluate
from truth.ours import forecast
from truth.recommended import Worth, _row
from truth.resampling import bootstrap, interval

from foretune.forecast.calibration import QUANTITIES, scale

NAMES = tuple("abcdef")


def truth(*seeds: list[float]) -> Truth:
    metric = np.array(seeds, dtype=float).T
    names = NAMES[: len(metric)]
    return Truth(names, metric, 1 - metric, np.full(len(metric), 10.0), tuple(range(len(seeds))))


def prediction(*seeds: list[float], width: float = 0.1) -> Prediction:
    metric = np.array(seeds, dtype=float).T
    return Prediction(metric, metric, 1 - metric, metric - width, metric + width, np.full(metric.shape, 0.5))


def test_means_over_seeds_leave_out_missing_runs() -> None:
    mean = truth([0.5, 0.6, math.nan], [0.7, math.nan, 0.4]).averaged()
    assert mean.metric[:, 0] == pytest.approx([0.6, 0.6, 0.4]) and mean.loss[:, 0] == pytest.approx([0.4, 0.4, 0.6])
    assert evaluate([mean], [prediction([0.6, 0.6, 0.4])])["mean_absolute_error"] == pytest.approx(0)


def test_statistics_of_a_perfect_prediction() -> None:
    values = [0.5, 0.6, 0.7, 0.9]
    statistics = evaluate([truth(values)], [prediction(values)])
    assert statistics["kendall"] == statistics["loss_kendall"] == pytest.approx(1)
    assert (
        statistics["regret"] == statistics["mean_absolute_error"] == 0
        and statistics["coverage"] == statistics["within_3_points"] == 1
    )
    assert statistics["cost"] == pytest.approx(0.05)


def test_errors_compare_single_runs_and_regret_compares_means() -> None:
    two, same = truth([0.5, 0.6, 0.8, 0.7], [0.5, 0.6, 0.6, 0.7]), [0.5, 0.6, 0.7, 0.6]
    statistics = evaluate([two], [prediction(same, same, width=0.05)])
    assert statistics["mean_absolute_error"] == pytest.approx((0 + 0 + 0.1 + 0.1) / 4)
    assert statistics["regret"] == pytest.approx(0.0)  # the third candidate has a mean of 0.7, as good as the fourth
    assert statistics["coverage"] == pytest.approx(0.5)


def test_runs_of_a_seed_are_compared_with_the_prediction_for_the_seed() -> None:
    two = truth([0.5, 0.6, 0.8], [0.9, 0.6, 0.7])
    statistics = evaluate([two], [prediction([0.5, 0.6, 0.8], [0.9, 0.6, 0.7])])
    assert statistics["mean_absolute_error"] == pytest.approx(0) and statistics["kendall"] == pytest.approx(1)
    assert statistics["regret"] == pytest.approx((0 + 0.05) / 2)  # means are 0.7, 0.6, 0.75
    one = evaluate([two], [prediction([0.5, 0.6, 0.8], [math.nan] * 3)])
    assert one["mean_absolute_error"] == 0 == one["regret"]  # predictions for the first seed only
    assert prediction([0.4, 0.6], [0.6, math.nan]).averaged().metric[:, 0] == pytest.approx([0.5, 0.6])


def test_ties_share_their_regret_and_nan_is_ignored() -> None:
    statistics = evaluate([truth([0.5, 0.9, 0.7])], [prediction([0.8, 0.8, math.nan])])
    assert statistics["regret"] == pytest.approx(0.2)
    assert math.isnan(statistics["kendall"])  # there are only two pairs


def test_another_seed_can_be_used_as_a_predictor() -> None:
    others, floor = another_seed(truth([0.5, 0.6, 0.8], [0.6, 0.6, 0.7]))
    statistics = evaluate([others], [floor])
    assert statistics["mean_absolute_error"] == pytest.approx(0.2 / 3)


def test_the_bootstrap_draws_the_same_candidates_for_all_predictors() -> None:
    values = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    draws = bootstrap([truth(values)], {"good": [prediction(values)], "bad": [prediction(values[::-1])]})
    low, high = interval(draws["good"]["kendall"] - draws["bad"]["kendall"])
    assert (low, high) == (pytest.approx(2), pytest.approx(2))


def test_the_bootstrap_equals_the_statistics_of_the_drawn_candidates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "DRAWS", 60)
    nan, generator = math.nan, np.random.default_rng(0)
    truths = [truth([0.5, 0.6, 0.6, 0.8, nan], [0.7, 0.5, 0.6, 0.9, 0.4]), truth([0.2, 0.9, 0.4], [0.2, nan, 0.4])]
    predictions = [
        prediction([1.0, 2.0, 2.0, 2.0, 0.0], [3.0, nan, 1.0, 3.0, 2.0]),
        prediction([1.0, 1.0, 2.0], [nan] * 3),
    ]
    draws = bootstrap(truths, {"one": predictions})["one"]
    for draw in range(60):
        for place, i in enumerate(generator.integers(len(truths), size=len(truths))):
            names = truths[i].candidates
            rows = generator.integers(len(names), size=len(names))
            drawn = Truth(tuple(names[row] for row in rows), truths[i].metric[rows], truths[i].loss[rows], rows * 1.0)
            predicted = predictions[i].map(lambda values, rows=rows: values[rows])
            for key in ("kendall", "regret"):
                assert draws[key][draw, place] == pytest.approx(STATISTICS[key](drawn, predicted), nan_ok=True)


def synthetic_task(name: str, generator: np.random.Generator, noise: float) -> dict[str, Any]:
    """A task whose real runs are its simulations with a given correction and noise."""
    simulated: dict[str, dict[str, Any]] = {}
    runs = []
    for number in range(12):
        gap = float(generator.uniform(0, 1))
        row: dict[str, Any] = {
            "eval_metric": 0.6 + 0.02 * number,
            "eval_loss": 0.6,
            "train_loss": 0.5,
            "fitted_loss": 0.6 / math.e,
        }
        learnt = gap / 2  # the measure of learning if the losses differ by a factor e and the layers change by this sum
        changes = gap / (1 - gap)
        gaps = {
            "largest_step": 0.001,
            "travel": 0.1,
            "change_before_learning": 0.0,
            "followed": None,
            "linearity_gap": gap,
            "weight_change": 1.0,
            "layer_changes": changes,
            "depth": 1.0,
        }
        simulated[f"c{number}"] = row | gaps | {"seconds": 1.0}
        run: dict[str, Any] = {"candidate": f"c{number}", "seed": 0, "seconds": 10.0}
        for quantity in QUANTITIES:
            on = scale(quantity, "accuracy")
            shift = 0.4 * (learnt if quantity == "eval_metric" else gap) + noise * float(generator.standard_normal())
            run[quantity] = on.back(on.to(row[quantity]) + shift)
        runs.append(run)
    content = {
        "name": name,
        "metric_name": "accuracy",
        "guess": 0.5,
        "guess_loss": 0.69,
        "outputs": 2,
        "frozen": 0.0,
        "collect": {"seconds": 12.0},
    }
    return content | {"runs": runs, "simulated": {"0": simulated}, "scores": {}}


def test_a_given_correction_is_learnt_and_its_intervals_hold() -> None:
    generator = np.random.default_rng(0)
    tasks = [synthetic_task(name, generator, noise=0.05) for name in "pqrst"]
    weights = fit(tasks)
    assert weights["eval_metric"]["shift"]["learnt"] == pytest.approx(0.4, abs=0.05)
    another = synthetic_task("u", generator, noise=0.05)
    real = truth_of(another)
    statistics = evaluate([real], [prediction_of(forecast(another, weights), real)])
    assert statistics["coverage"] >= 0.75 and statistics["mean_absolute_error"] < 0.02
    assert statistics["cost"] == pytest.approx((1.0 + 12.0 / 12) / 10.0)


def test_an_outlier_hardly_changes_the_correction() -> None:
    generator = np.random.default_rng(0)
    tasks = [synthetic_task(name, generator, noise=0.05) for name in "pqrst"]
    before = fit(tasks)["eval_metric"]
    tasks[0]["runs"][-1]["eval_metric"] = 0.95  # the run with the largest gap
    tasks[0]["simulated"]["0"]["c11"] |= {"linearity_gap": 0.95, "layer_changes": 19.0}
    after = fit(tasks)["eval_metric"]
    assert after["shift"]["learnt"] == pytest.approx(before["shift"]["learnt"], abs=0.03)
    assert after["spread"]["gap"] < before["spread"]["gap"] + 2  # a fit of squares would add 2.45


def test_a_prediction_without_a_seed_is_compared_with_all_seeds() -> None:
    task = synthetic_task("v", np.random.default_rng(1), noise=0.0)
    task["runs"] += [run | {"seed": 1, "eval_metric": run["eval_metric"] - 0.01} for run in task["runs"]]
    real = truth_of(task)
    scores = {"candidates": {f"c{i}": {"rank": 1.0, "metric": 0.7, "seconds": 1.0} for i in range(12)}}
    once = prediction_of({ANY: scores | {"shared_seconds": 6.0}}, real)
    assert real.seeds == (0, 1) and once.metric == pytest.approx(np.full((12, 2), 0.7))
    assert once.seconds == pytest.approx(np.full((12, 2), 1.5)) and np.isnan(once.low).all()
    one_seed = prediction_of({"1": scores | {"shared_seconds": 0.0}}, real)
    assert np.isnan(one_seed.metric[:, 0]).all() and one_seed.metric[:, 1] == pytest.approx(np.full(12, 0.7))


def test_evidence_is_computed_from_gathered_results() -> None:
    gaps: dict[str, Any] = {
        "largest_step": 0.03,
        "travel": 0.9,
        "linearity_gap": 2.0,
        "weight_change": 0.2,
        "layer_changes": 1.0,
    }
    row = (
        gaps
        | {"change_before_learning": 0.0, "followed": None}
        | {"depth": 1.0, "fitted_loss": 0.1, "eval_loss": 0.5, "eval_metric": 0.8}
    )
    task = {"guess": 0.5, "guess_loss": 0.7, "metric_name": "accuracy", "outputs": 2, "frozen": 0.5}
    assert evidence_of(row, task)["unstable"] == 1 and evidence_of(row | {"travel": 0.3}, task)["unstable"] == 0
    astray = row | {"travel": 0.3, "change_before_learning": 0.2, "followed": 0.5}
    assert evidence_of(astray, task)["unstable"] == 1 and evidence_of(astray, task)["followed"] > 0
    lost = evidence_of(row | {"travel": 2.0}, task)  # no real run was begun
    assert lost["loss_fall"] == pytest.approx(math.log(0.7 / 0.5)) and lost["fall"] < 0


def test_recommendations_are_compared_with_the_best_of_the_grid() -> None:
    first = {"name": "wide", "forecast": 0.8, "parameters": 400, "true": [0.7, 0.8]}
    recommendation = {"recommended": first, "base": first | {"true": [0.5, 0.6]}, "searched": 43}
    recommendation |= {"grid": {"name": "best", "true": 0.76}}
    worth = Worth.of({"task": recommendation})
    assert worth == (pytest.approx(0.2), pytest.approx(0.01)) and worth.beside_best == "1.0 below"
    assert Worth(0.2, -0.032).beside_best == "3.2 above"
    task = {"name": "task", "metric_name": "accuracy"}
    assert _row(task, recommendation) == [
        *("task", "43", "55.0", "wide", "80.0", "75.0", "76.0 (best)", "1.0"),
        *["–"] * 3,
    ]
    lighter = _row(
        task, recommendation | {"lighter": first | {"name": "narrow", "parameters": 100, "true": [0.7, 0.7]}}
    )
    assert lighter[-3:] == ["narrow", "25%", "70.0"]


def test_candidates_of_a_task_have_different_names() -> None:
    for name, setting in TASKS.items():
        names = [candidate["name"] for candidate in setting.grid(setting.rate, MODULES[setting.model])]
        assert len(set(names)) == len(names) >= 10 and set(setting.candidates) <= set(names), name
