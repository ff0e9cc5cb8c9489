"""Comparison of forecasts with real runs, on numbers computed by hand."""

import json
import warnings
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foretune.errors import InputError
from foretune.forecast.compare import Z_90, compare, higher_is_better, is_share, worth
from foretune.report.read import read_run
from foretune.results import provenance, read_json, write_json

HEADER = provenance(0, 1.0)


def forecast(name: str, metric: float | None, *, loss: float | None = 0.5, std: float | None = None, **more: Any):
    """An entry of forecast.json; ``more`` may have trace, condition_number, alignment, parameters, …"""
    return {
        "name": name,
        "peft": {"type": "lora", "r": more.get("r", 8)},
        "training": {"learning_rate": 1e-3},
        "predicted": {
            "train_loss": 0.1,
            "eval_loss": loss,
            "eval_metric": metric,
            "metric_name": more.get("metric_name", "accuracy"),
            "eval_metric_std": std,
            "curve": [],
        },
        "kernel": {key: more.get(key) for key in ("trace", "condition_number", "alignment")},
        "cost": {"seconds": 2.0, "trainable_parameters": more.get("parameters")},
        "warnings": [],
    }


def truth(name: str, metric: float | None, *, loss: float | None = 0.5, **more: Any):
    """The content of a result.json."""
    return {
        "candidate": name,
        "peft": {"type": "lora", "r": more.get("r", 8)},
        "training": {"learning_rate": 1e-3},
        "linearised": more.get("linearised", False),
        "final": {
            "train_loss": 0.2,
            "eval_loss": loss,
            "eval_metric": metric,
            "metric_name": more.get("metric_name", "accuracy"),
        },
        "curve": [],
        "cost": {"seconds": 15.0, "eval_seconds": 5.0, "trainable_parameters": 1, "peak_memory_bytes": None},
    }


def write(directory: Path, forecasts: list[dict[str, Any]], truths: list[dict[str, Any]]) -> Path:
    directory.mkdir(exist_ok=True)
    content = {**HEADER, "task": {}, "collect": {"seconds": 10.0}, "candidates": forecasts}
    write_json(directory / "forecast.json", content)
    for index, result in enumerate(truths):
        folder = directory / "train" / f"run{index}"
        folder.mkdir(parents=True)
        write_json(folder / "result.json", {**HEADER, **result})
    return directory


def test_hand_computed_statistics(tmp_path: Path) -> None:
    # predicted ranks 4 3 2 1, true 2 4 3 1: d² = 4+1+1+0, rho = 1 − 6·6/(4·15) = 0.4; 4 of 6 pairs agree
    predicted = {"a": 0.90, "b": 0.88, "c": 0.80, "d": 0.70}
    true = {"a": 0.82, "b": 0.86, "c": 0.83, "d": 0.71}
    write(
        tmp_path,
        [forecast(name, value, std=0.02) for name, value in predicted.items()] + [forecast("untrained", 0.99)],
        [truth(name, value) for name, value in true.items()],
    )
    result = compare(tmp_path)
    summary = result["summary"]
    assert [row["name"] for row in result["candidates"]] == ["a", "b", "c", "d"]
    assert summary["n"] == 4
    assert summary["spearman"] == pytest.approx(0.4)
    assert summary["kendall"] == pytest.approx((4 - 2) / 6)
    assert summary["mean_absolute_error"] == pytest.approx((0.08 + 0.02 + 0.03 + 0.01) / 4)
    assert summary["bias"] == pytest.approx((0.08 + 0.02 - 0.03 - 0.01) / 4)
    assert summary["share_within_3_points"] == pytest.approx(0.75)  # c is off by exactly three points
    assert summary["regret"] == pytest.approx(0.04)
    assert summary["cost_ratio"] == pytest.approx(2 / 20)
    assert summary["collect_ratio"] == pytest.approx(10 / 20)
    assert [row["within_interval"] for row in result["candidates"]] == [False, True, True, True]
    assert read_json(tmp_path / "comparison.json", "") == json.loads(json.dumps(result))


def test_eval_loss_is_better_when_lower(tmp_path: Path) -> None:
    losses = {"a": (0.3, 0.6), "b": (0.4, 0.5), "c": (0.5, 0.7)}
    write(
        tmp_path,
        [forecast(name, 0.5, loss=ours) for name, (ours, _) in losses.items()],
        [truth(name, 0.5, loss=real) for name, (_, real) in losses.items()],
    )
    summary = compare(tmp_path)["summary"]
    assert summary["eval_loss"]["regret"] == pytest.approx(0.1)
    assert summary["eval_loss"]["spearman"] == pytest.approx(0.5)
    assert summary["eval_loss"]["bias"] == pytest.approx(-0.2)
    assert summary["eval_loss"]["share_within_3_points"] is None
    assert summary["spearman"] is None  # a constant metric has no order
    assert summary["regret"] == pytest.approx(0.0)


def test_trivial_rankers(tmp_path: Path) -> None:
    kernels: dict[str, dict[str, Any]] = {
        "a": {"parameters": 10, "trace": 1.0, "condition_number": 5.0, "alignment": None},
        "b": {"parameters": 30, "trace": 2.0, "condition_number": 9.0, "alignment": 0.1},
        "c": {"parameters": 30, "trace": 3.0, "condition_number": 7.0, "alignment": 0.2},
    }
    write(
        tmp_path,
        [forecast(name, 0.5, **kernel) for name, kernel in kernels.items()],
        [truth("a", 0.6), truth("b", 0.7), truth("c", 0.8)],
    )
    rankers = compare(tmp_path)["rankers"]
    assert rankers["trace"] == {"n": 3, "spearman": 1.0, "kendall": pytest.approx(1.0), "regret": 0.0}
    assert rankers["condition_number"]["spearman"] == pytest.approx(-0.5)  # −κ orders a, c, b
    assert rankers["condition_number"]["regret"] == pytest.approx(0.2)  # the smallest κ is ranked first
    assert rankers["trainable_parameters"]["regret"] == pytest.approx(0.05)  # b and c tie: the mean of 0.1 and 0
    assert rankers["trainable_parameters"]["spearman"] == pytest.approx(3**0.5 / 2)
    assert rankers["alignment"] == {"n": 2, "spearman": None, "kendall": None, "regret": 0.0}


def test_a_metric_where_lower_is_better(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            forecast(name, value, metric_name="mse", trace=-value)
            for name, value in zip("abc", (1.0, 2.0, 3.0), strict=True)
        ],
        [truth(name, value, metric_name="mse") for name, value in zip("abc", (1.5, 1.0, 3.0), strict=True)],
    )
    result = compare(tmp_path)
    assert result["summary"]["regret"] == pytest.approx(0.5)
    assert result["summary"]["share_within_3_points"] is None
    assert result["rankers"]["trace"]["spearman"] == pytest.approx(0.5)


def test_missing_values_and_two_candidates_cause_no_warnings(tmp_path: Path) -> None:
    write(
        tmp_path,
        [forecast("a", None, loss=None), forecast("b", 0.5)],
        [truth("a", 0.5), truth("b", None, loss=None)],
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = compare(tmp_path)
    empty = {"n": 0, **dict.fromkeys(["spearman", "kendall", "mean_absolute_error", "bias", "noise_floor"])}
    assert result["summary"]["eval_loss"] == {**empty, "share_within_3_points": None, "regret": None}
    assert all(row["within_interval"] is None for row in result["candidates"])


def test_candidates_expected_to_collapse_are_chosen_last(tmp_path: Path) -> None:
    """Its forecast is the highest and its real metric the lowest, so there is no regret and a perfect order."""
    forecasts = [forecast("a", 0.7), forecast("b", 0.6), forecast("c", 0.8) | {"unstable": True}]
    write(tmp_path, forecasts, [truth("a", 0.7), truth("b", 0.6), truth("c", 0.5)])
    summary = compare(tmp_path)["summary"]
    assert (summary["regret"], summary["kendall"]) == (0.0, 1.0)
    assert summary["mean_absolute_error"] == pytest.approx(0.1)


def test_candidates_that_may_collapse_are_ranked_by_the_worse_end_of_their_error_bar(tmp_path: Path) -> None:
    risky = forecast("c", 0.8) | {"may_collapse": True}
    risky["predicted"]["eval_metric_std"] = 0.1
    for b, best in ((0.63, "c"), (0.64, "b")):
        folder = tmp_path / best
        folder.mkdir()
        truths = [truth("a", 0.5), truth("b", b), truth("c", 0.5)]
        write(folder, [forecast("a", 0.5), forecast("b", b), risky], truths)
        assert (compare(folder)["summary"]["regret"] == 0) is (best == "b")
    caught_up = risky | {"beginning": {"followed": 0.6}}  # the beginning of the user's own run was seen to learn
    write(tmp_path, [forecast("a", 0.5), forecast("b", 0.64), caught_up], truths)
    assert compare(tmp_path)["summary"]["regret"] == pytest.approx(0.14)
    assert worth(0.3, 0.1, True, False, higher=False) == pytest.approx(0.3 + Z_90 * 0.1)
    assert worth(0.3, None, True, True, higher=False) > 1e5


def test_several_seeds_of_real_runs_are_averaged(tmp_path: Path) -> None:
    write(tmp_path, [forecast("a", 0.7), forecast("b", 0.5)], [truth("a", 0.60), truth("b", 0.5)])
    for seed, metric in ((1, 0.64), (2, 0.62)):
        folder = tmp_path / "train" / "run0" / f"seed-{seed}"
        folder.mkdir()
        result = truth("a", metric)
        result["training"]["seed"] = seed
        write_json(folder / "result.json", {**HEADER, **result})
    result = compare(tmp_path)
    true = result["candidates"][0]["true"]
    assert true["eval_metric"] == pytest.approx(0.62) and true["runs"] == 3
    assert true["eval_metric_std"] == pytest.approx(0.02)
    assert result["candidates"][1]["true"]["eval_metric_std"] is None
    assert result["summary"]["noise_floor"] == pytest.approx((0.04 + 0.02 + 0.02) / 3)
    assert result["summary"]["regret"] == pytest.approx(0.0)
    shown = read_run(tmp_path)
    assert not shown.notes and shown.comparison is not None
    assert shown.candidates[0].truth is not None and shown.candidates[0].truth.eval_metric == pytest.approx(0.62)


def test_there_is_no_mean_if_a_seed_lacks_the_metric(tmp_path: Path) -> None:
    write(tmp_path, [forecast("a", 0.7), forecast("b", 0.5)], [truth("a", 0.60), truth("b", 0.5)])
    folder = tmp_path / "train" / "run0" / "seed-1"
    folder.mkdir()
    write_json(folder / "result.json", {**HEADER, **truth("a", None)})
    true = compare(tmp_path)["candidates"][0]["true"]
    assert true["eval_metric"] is None and true["eval_loss"] == pytest.approx(0.5) and true["runs"] == 2
    shown = read_run(tmp_path)
    assert not shown.notes and shown.comparison is not None
    assert shown.candidates[0].truth is not None and shown.candidates[0].truth.eval_metric is None


def test_nothing_trained_names_the_command(tmp_path: Path) -> None:
    write(tmp_path, [forecast("a", 0.5)], [truth("other", 0.5), truth("a", 0.5, linearised=True)])
    with pytest.raises(InputError, match=r"(?s)linearised.*foretune train run\.yaml --candidate NAME -o"):
        compare(tmp_path)
    assert not (tmp_path / "comparison.json").exists()


def test_missing_forecast_names_the_command(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="foretune forecast"):
        compare(tmp_path)


@pytest.mark.parametrize("change", [{"r": 16}, {"metric_name": "f1"}])
def test_stale_results_are_never_compared(tmp_path: Path, change: dict[str, Any]) -> None:
    write(tmp_path, [forecast("a", 0.5)], [truth("a", 0.5, **change)])
    with pytest.raises(InputError, match="stale") as caught:
        compare(tmp_path)
    assert str(next(iter(change.values()))) in str(caught.value)


def test_another_proximal_strength_is_stale_and_no_term_equals_strength_zero(tmp_path: Path) -> None:
    off = {"strength": 0.0, "rule": "always", "scope": "global"}
    write(tmp_path, [forecast("a", 0.5) | {"proximal": off}], [truth("a", 0.5)])
    assert compare(tmp_path)["summary"]["n"] == 1
    write(tmp_path / "on", [forecast("a", 0.5)], [truth("a", 0.5) | {"proximal": off | {"strength": 2.0}}])
    with pytest.raises(InputError, match=r"stale: proximal.strength is 2.0, in the forecast 0.0"):
        compare(tmp_path / "on")


def test_other_runs_are_listed_as_skipped(tmp_path: Path) -> None:
    write(tmp_path, [forecast("a", 0.5)], [truth("a", 0.5), truth("b", 0.9)])
    assert [item["name"] for item in compare(tmp_path)["skipped"]] == ["b"]


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.floats(0, 1).map(lambda x: round(x, 3)), min_size=3, max_size=8, unique=True),
    name=st.sampled_from(["accuracy", "mse"]),
)
def test_a_perfect_forecast_has_no_error_and_no_regret(values: list[float], name: str) -> None:
    with TemporaryDirectory() as folder:
        write(
            Path(folder),
            [forecast(f"c{i}", value, loss=value, std=0.0, metric_name=name) for i, value in enumerate(values)],
            [truth(f"c{i}", value, loss=value, metric_name=name) for i, value in enumerate(values)],
        )
        result = compare(Path(folder))
    for summary in (result["summary"], result["summary"]["eval_loss"]):
        assert not any(summary[key] for key in ("mean_absolute_error", "regret", "bias"))
        assert summary["spearman"] == pytest.approx(1.0)
        assert summary["kendall"] == pytest.approx(1.0)
    assert all(row["within_interval"] for row in result["candidates"])


@settings(max_examples=15, deadline=None)
@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=6))
def test_statistics_stay_in_range(pairs: list[tuple[float, float]]) -> None:
    with TemporaryDirectory() as folder:
        write(
            Path(folder),
            [forecast(f"c{i}", ours) for i, (ours, _) in enumerate(pairs)],
            [truth(f"c{i}", real) for i, (_, real) in enumerate(pairs)],
        )
        summary = compare(Path(folder))["summary"]
    assert summary["mean_absolute_error"] >= abs(summary["bias"]) - 1e-12
    assert summary["regret"] is None or 0 <= summary["regret"] <= 1
    assert summary["spearman"] is None or abs(summary["spearman"]) <= 1 + 1e-12


def test_metric_names_tell_direction_and_share() -> None:
    assert is_share("accuracy") and is_share("macro_f1") and not is_share("r2") and not is_share(None)
    assert higher_is_better("accuracy") and higher_is_better("pearson") and higher_is_better(None)
    assert not higher_is_better("mse") and not higher_is_better("eval_loss") and higher_is_better("neg_mse")
