"""The truth benchmark's arithmetic: statistics of known numbers, and a correction that is found again."""

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


def test_means_over_seeds_leave_out_what_was_not_trained() -> None:
    mean = truth([0.5, 0.6, math.nan], [0.7, math.nan, 0.4]).averaged()
    assert mean.metric[:, 0] == pytest.approx([0.6, 0.6, 0.4]) and mean.loss[:, 0] == pytest.approx([0.4, 0.4, 0.6])
    assert evaluate([mean], [prediction([0.6, 0.6, 0.4])])["mean_absolute_error"] == pytest.approx(0)


def test_a_perfect_prediction() -> None:
    values = [0.5, 0.6, 0.7, 0.9]
    found = evaluate([truth(values)], [prediction(values)])
    assert found["kendall"] == found["loss_kendall"] == pytest.approx(1)
    assert found["regret"] == found["mean_absolute_error"] == 0 and found["coverage"] == found["within_3_points"] == 1
    assert found["cost"] == pytest.approx(0.05)


def test_errors_are_of_single_runs_and_regret_of_means() -> None:
    two, same = truth([0.5, 0.6, 0.8, 0.7], [0.5, 0.6, 0.6, 0.7]), [0.5, 0.6, 0.7, 0.6]
    found = evaluate([two], [prediction(same, same, width=0.05)])
    assert found["mean_absolute_error"] == pytest.approx((0 + 0 + 0.1 + 0.1) / 4)
    assert found["regret"] == pytest.approx(0.0)  # the third is 0.7 on average, as good as the fourth
    assert found["coverage"] == pytest.approx(0.5)


def test_seeds_are_held_against_what_was_said_of_them() -> None:
    two = truth([0.5, 0.6, 0.8], [0.9, 0.6, 0.7])
    found = evaluate([two], [prediction([0.5, 0.6, 0.8], [0.9, 0.6, 0.7])])
    assert found["mean_absolute_error"] == pytest.approx(0) and found["kendall"] == pytest.approx(1)
    assert found["regret"] == pytest.approx((0 + 0.05) / 2)  # means are 0.7, 0.6, 0.75
    one = evaluate([two], [prediction([0.5, 0.6, 0.8], [math.nan] * 3)])
    assert one["mean_absolute_error"] == 0 == one["regret"]  # asked about the first only
    assert prediction([0.4, 0.6], [0.6, math.nan]).averaged().metric[:, 0] == pytest.approx([0.5, 0.6])


def test_ties_share_their_regret_and_nan_does_not_count() -> None:
    found = evaluate([truth([0.5, 0.9, 0.7])], [prediction([0.8, 0.8, math.nan])])
    assert found["regret"] == pytest.approx(0.2)
    assert math.isnan(found["kendall"])  # two pairs only


def test_another_seed_is_a_predictor() -> None:
    others, floor = another_seed(truth([0.5, 0.6, 0.8], [0.6, 0.6, 0.7]))
    found = evaluate([others], [floor])
    assert found["mean_absolute_error"] == pytest.approx(0.2 / 3)


def test_the_bootstrap_pairs_predictors() -> None:
    values = [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]
    draws = bootstrap([truth(values)], {"good": [prediction(values)], "bad": [prediction(values[::-1])]})
    low, high = interval(draws["good"]["kendall"] - draws["bad"]["kendall"])
    assert (low, high) == (pytest.approx(2), pytest.approx(2))


def test_the_bootstrap_is_the_statistics_of_the_candidates_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resampling, "DRAWS", 60)
    nan, generator = math.nan, np.random.default_rng(0)
    truths = [truth([0.5, 0.6, 0.6, 0.8, nan], [0.7, 0.5, 0.6, 0.9, 0.4]), truth([0.2, 0.9, 0.4], [0.2, nan, 0.4])]
    said = [prediction([1.0, 2.0, 2.0, 2.0, 0.0], [3.0, nan, 1.0, 3.0, 2.0]), prediction([1.0, 1.0, 2.0], [nan] * 3)]
    draws = bootstrap(truths, {"one": said})["one"]
    for draw in range(60):
        for place, i in enumerate(generator.integers(len(truths), size=len(truths))):
            names = truths[i].candidates
            rows = generator.integers(len(names), size=len(names))
            drawn = Truth(tuple(names[row] for row in rows), truths[i].metric[rows], truths[i].loss[rows], rows * 1.0)
            predicted = said[i].map(lambda values, rows=rows: values[rows])
            for key in ("kendall", "regret"):
                assert draws[key][draw, place] == pytest.approx(STATISTICS[key](drawn, predicted), nan_ok=True)


def made_up(name: str, generator: np.random.Generator, noise: float) -> dict[str, Any]:
    """A task whose real runs are its simulations, corrected by a known rule and some noise."""
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
        learnt = gap / 2  # what is learnt where the losses are e apart and the layers change by this sum
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


def test_a_known_correction_is_found_and_its_intervals_hold() -> None:
    generator = np.random.default_rng(0)
    tasks = [made_up(name, generator, noise=0.05) for name in "pqrst"]
    weights = fit(tasks)
    assert weights["eval_metric"]["shift"]["learnt"] == pytest.approx(0.4, abs=0.05)
    another = made_up("u", generator, noise=0.05)
    known = truth_of(another)
    found = evaluate([known], [prediction_of(forecast(another, weights), known)])
    assert found["coverage"] >= 0.75 and found["mean_absolute_error"] < 0.02
    assert found["cost"] == pytest.approx((1.0 + 12.0 / 12) / 10.0)


def test_one_run_far_from_its_forecast_does_not_teach_the_others() -> None:
    generator = np.random.default_rng(0)
    tasks = [made_up(name, generator, noise=0.05) for name in "pqrst"]
    before = fit(tasks)["eval_metric"]
    tasks[0]["runs"][-1]["eval_metric"] = 0.95  # and it is the one with the largest gap
    tasks[0]["simulated"]["0"]["c11"] |= {"linearity_gap": 0.95, "layer_changes": 19.0}
    after = fit(tasks)["eval_metric"]
    assert after["shift"]["learnt"] == pytest.approx(before["shift"]["learnt"], abs=0.03)
    assert after["spread"]["gap"] < before["spread"]["gap"] + 2  # squares would say 2.45 more


def test_who_is_asked_once_is_held_against_every_seed() -> None:
    task = made_up("v", np.random.default_rng(1), noise=0.0)
    task["runs"] += [run | {"seed": 1, "eval_metric": run["eval_metric"] - 0.01} for run in task["runs"]]
    known = truth_of(task)
    said = {"candidates": {f"c{i}": {"rank": 1.0, "metric": 0.7, "seconds": 1.0} for i in range(12)}}
    once = prediction_of({ANY: said | {"shared_seconds": 6.0}}, known)
    assert known.seeds == (0, 1) and once.metric == pytest.approx(np.full((12, 2), 0.7))
    assert once.seconds == pytest.approx(np.full((12, 2), 1.5)) and np.isnan(once.low).all()
    asked = prediction_of({"1": said | {"shared_seconds": 0.0}}, known)
    assert np.isnan(asked.metric[:, 0]).all() and asked.metric[:, 1] == pytest.approx(np.full(12, 0.7))


def test_evidence_is_read_from_what_was_gathered() -> None:
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
    lost = evidence_of(row | {"travel": 2.0}, task)  # and never begun
    assert lost["loss_fall"] == pytest.approx(math.log(0.7 / 0.5)) and lost["fall"] < 0


def test_what_is_recommended_is_compared_with_the_best_that_was_known() -> None:
    first = {"name": "wide", "forecast": 0.8, "parameters": 400, "true": [0.7, 0.8]}
    found = {"recommended": first, "base": first | {"true": [0.5, 0.6]}, "searched": 43}
    found |= {"grid": {"name": "best", "true": 0.76}}
    worth = Worth.of({"task": found})
    assert worth == (pytest.approx(0.2), pytest.approx(0.01)) and worth.beside_best == "1.0 below"
    assert Worth(0.2, -0.032).beside_best == "3.2 above"
    task = {"name": "task", "metric_name": "accuracy"}
    assert _row(task, found) == [*("task", "43", "55.0", "wide", "80.0", "75.0", "76.0 (best)", "1.0"), *["–"] * 3]
    lighter = _row(task, found | {"lighter": first | {"name": "narrow", "parameters": 100, "true": [0.7, 0.7]}})
    assert lighter[-3:] == ["narrow", "25%", "70.0"]


def test_every_task_has_candidates_of_its_own() -> None:
    for name, setting in TASKS.items():
        names = [each["name"] for each in setting.grid(setting.rate, MODULES[setting.model])]
        assert len(set(names)) == len(names) >= 10 and set(setting.candidates) <= set(names), name
