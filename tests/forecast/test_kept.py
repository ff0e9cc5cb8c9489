"""Files that a forecast keeps: damaged or foreign ones are named and made again, and other candidates stay."""

from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_rows, write_jsonl, write_tiny_run

from foretune.cli.console import progress_bar
from foretune.errors import InputError
from foretune.forecast.compare import compare
from foretune.forecast.run import forecast_run, lead
from foretune.results import read_json
from foretune.task import load_task
from foretune.train import fine_tune

PAIR = [{"name": "a", "peft": {"target_modules": ["query"]}}, {"name": "b", "peft": {"target_modules": ["value"]}}]


def forecast(run: Path, out: Path, **options: Any) -> tuple[dict[str, Any], list[str]]:
    """The forecast of a run file, and the notes that it gives."""
    said: list[str] = []
    return forecast_run(run, out, bar=progress_bar, notify=said.append, **options), said


@pytest.mark.parametrize("name", ["tangents.safetensors", "summary.safetensors", "manifest.json"])
def test_one_changed_byte_of_the_tangents_is_noticed(name: str, tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path), tmp_path / "out"
    before, _ = forecast(run, out)
    (path,) = (out / "tangents").glob(f"*/{name}")
    content = bytearray(path.read_bytes())
    content[-40] ^= 1
    path.write_bytes(content)
    after, said = forecast(run, out)
    assert len(said) == 1 and str(path.parent) in said[0] and "made again" in said[0]
    assert not after["collect"]["reused"]
    assert [row["predicted"] for row in after["candidates"]] == [row["predicted"] for row in before["candidates"]]
    assert forecast(run, out)[0]["collect"]["reused"]


@pytest.mark.parametrize("content", ["{}", "[]", "null", ""])
def test_tangents_without_a_valid_manifest_are_made_again(content: str, tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path), tmp_path / "out"
    forecast(run, out)
    (path,) = (out / "tangents").glob("*/manifest.json")
    path.write_text(content)
    result, said = forecast(run, out)
    assert said and not result["collect"]["reused"]


def test_forecasting_one_candidate_keeps_the_others(tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path, candidates=PAIR), tmp_path / "out"
    both, _ = forecast(run, out)
    again, said = forecast(run, out, names=["b"])
    assert not said and [row["name"] for row in again["candidates"]] == [row["name"] for row in both["candidates"]]
    losses = [[row["predicted"]["eval_loss"] for row in found["candidates"]] for found in (again, both)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    only, said = forecast(run, out, names=["b"], begin=0.0)
    assert [row["name"] for row in only["candidates"]] == ["b"] and "other options" in said[0]
    assert {row["name"] for row in read_json(out / "forecast-before.json", "")["candidates"]} == {"a", "b"}


def test_forecasts_of_other_data_are_not_mixed(tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path, candidates=PAIR), tmp_path / "out"
    forecast(run, out)
    write_jsonl(tmp_path / "train.jsonl", tiny_rows(48, seed=9))
    again, said = forecast(run, out, names=["a"])
    assert [row["name"] for row in again["candidates"]] == ["a"] and "other data" in said[0]


def test_real_runs_of_other_data_are_never_compared(tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path, candidates=PAIR, training={"max_steps": 2}), tmp_path / "out"
    task = load_task(run)
    for candidate in task.candidates:
        fine_tune(task, candidate, out)
    write_jsonl(tmp_path / "train.jsonl", tiny_rows(48, seed=9))
    forecast(run, out)
    with pytest.raises(InputError, match="; a, b: stale: it was trained on other data") as refusal:
        compare(out)
    assert str(refusal.value).count("stale") == 1
    fine_tune(load_task(run, ["a"]), load_task(run, ["a"]).candidates[0], out)
    found = compare(out)
    assert [row["name"] for row in found["candidates"]] == ["a"]
    assert [(item["name"], "other data" in item["reason"]) for item in found["skipped"]] == [("b", True)]


def test_a_forecast_is_compared_with_its_own_seeds(tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path, training={"learning_rate": 0.02}), tmp_path / "out"
    forecast(run, out)
    task = load_task(run)
    results = [fine_tune(task, task.candidates[0], out, seed=seed)[0] for seed in (0, 1)]
    metrics = [result["final"]["eval_metric"] for result in results]
    assert metrics[0] != metrics[1]
    found = compare(out)
    assert found["candidates"][0]["true"]["eval_metric"] == metrics[0] and found["candidates"][0]["true"]["runs"] == 1
    assert found["summary"]["noise_floor"] == pytest.approx(abs(metrics[0] - metrics[1]))
    forecast(run, out, seeds=2)
    assert compare(out)["candidates"][0]["true"]["eval_metric"] == pytest.approx(sum(metrics) / 2)


def test_a_run_of_another_seed_alone_is_not_compared(tmp_path: Path) -> None:
    run, out = write_tiny_run(tmp_path, candidates=PAIR, training={"max_steps": 2}), tmp_path / "out"
    forecast(run, out)
    task = load_task(run)
    fine_tune(task, task.candidates[0], out)
    fine_tune(task, task.candidates[1], out, seed=5)
    found = compare(out)
    assert [row["name"] for row in found["candidates"]] == ["a"]
    assert found["skipped"][0]["reason"] == "it was trained from seed 5 and forecast for seed 0"


def entry(name: str, metric: float, std: float | None, metric_name: str = "accuracy") -> dict[str, Any]:
    return {"name": name, "predicted": {"eval_metric": metric, "eval_metric_std": std, "metric_name": metric_name}}


def test_the_lead_and_its_probability() -> None:
    ahead = lead([entry("a", 0.80, 0.03), entry("b", 0.75, 0.04)])
    assert ahead is not None and ahead.second == "b" and ahead.margin == pytest.approx(0.05)
    assert ahead.chance == pytest.approx(0.8413, abs=1e-4)  # one standard deviation of the difference
    lower = lead([entry("a", 1.0, 0.1, "mse"), entry("b", 1.1, 0.1, "mse")])
    assert lower is not None and lower.margin == pytest.approx(0.1)
    assert lead([entry("a", 0.8, 0.1)]) is None and lead([entry("a", 0.8, None), entry("b", 0.7, 0.1)]) is None
