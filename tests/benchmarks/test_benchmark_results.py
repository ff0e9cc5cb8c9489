"""The committed results of the benchmarks are complete and small, and agree with the correction and the pages."""

import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import bounds  # ruff: ignore[module-import-not-at-top-of-file]
from tables import from_table, rounded, to_table, write_result  # ruff: ignore[module-import-not-at-top-of-file]
from truth import document, gather, units  # ruff: ignore[module-import-not-at-top-of-file]
from truth.benchmark import Benchmark  # ruff: ignore[module-import-not-at-top-of-file]
from truth.calibrate import fit, learnt_on  # ruff: ignore[module-import-not-at-top-of-file]
from truth.grid import TASKS  # ruff: ignore[module-import-not-at-top-of-file]

from foretune.errors import InputError  # ruff: ignore[module-import-not-at-top-of-file]
from foretune.forecast import calibration  # ruff: ignore[module-import-not-at-top-of-file]
from foretune.results import provenance, read_json, write_json  # ruff: ignore[module-import-not-at-top-of-file]

RESULTS = sorted((BENCHMARKS / "results").rglob("*.json"))
LIMIT = 800_000  # bytes of all results but the draws of the wild benchmark
DRAW = 25_000  # bytes of a draw


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_committed_result_is_complete(path: Path) -> None:
    assert read_json(path, "git checkout benchmarks/results")["versions"]["foretune"]


def test_committed_results_are_small() -> None:
    draws = [path for path in RESULTS if path.parent.name == "wild"]
    assert draws and all(path.stat().st_size < DRAW for path in draws)
    assert sum(path.stat().st_size for path in RESULTS if path not in draws) < LIMIT


def test_rows_are_the_same_after_writing_and_reading_a_table(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"name": "a", "loss": 0.123456789, "kept": True},
        {"name": "b", "loss": None, "kept": False},
    ]
    path = tmp_path / "result.json"
    write_result(path, provenance(0, 1.0) | {"runs": to_table(rounded(rows)), "empty": to_table([])})
    content = read_json(path, "")
    assert from_table(content["runs"]) == [rows[0] | {"loss": 0.123457}, rows[1]] and from_table(content["empty"]) == []
    assert '   ["a", 0.123457, true],\n   ["b", null, false]\n' in path.read_text(encoding="utf-8")

    path.write_text(path.read_text(encoding="utf-8").replace("0.123457", "0.2"), encoding="utf-8")
    with pytest.raises(InputError, match="checksum"):
        read_json(path, "")


def write_run(folder: Path, candidate: str, seed: int, metric: float) -> None:
    final = {"eval_metric": metric, "eval_loss": 0.5, "train_loss": None}
    content = {"candidate": candidate, "seed": seed, "final": final, "cost": {"seconds": 3.0, "eval_seconds": 1.0}}
    path = folder / "train" / candidate / f"seed-{seed}"
    path.mkdir(parents=True)
    write_json(path / "result.json", provenance(seed, 4.0) | content)


def test_new_runs_and_scores_are_added_to_gathered_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = gather.read_task(gather.RESULTS / "movie-mpnet.json")
    monkeypatch.setattr(gather, "RESULTS", tmp_path)
    gather.write_task(tmp_path / "movie-mpnet.json", before)
    assert gather.read_task(tmp_path / "movie-mpnet.json") == before

    folder = tmp_path / "runs"
    write_run(folder, "qv", 7, 0.75)
    row = {"rank": 1.23456789, "metric": None, "loss": 0.5, "seconds": 2.0}
    path = folder / "seed-0" / "scores"
    path.mkdir(parents=True)
    write_json(path / "new.json", provenance(0, 1.0) | {"candidates": {"qv": row}, "shared_seconds": 4.0})
    after: dict[str, Any] = gather.gather("movie-mpnet", TASKS["movie-mpnet"], folder)
    gather.write_task(tmp_path / "movie-mpnet.json", after)
    read = gather.read_task(tmp_path / "movie-mpnet.json")
    (new,) = [run for run in read["runs"] if run not in before["runs"]]
    assert (new["candidate"], new["seed"], new["eval_metric"], new["seconds"]) == ("qv", 7, 0.75, 4.0)
    assert len(read["runs"]) == len(before["runs"]) + 1 and set(read["scores"]) == {*before["scores"], "new"}
    assert read["simulated"] == before["simulated"] and read["guess"] == before["guess"], "no new forecasts"
    assert read["scores"]["new"]["0"]["candidates"]["qv"] == {"rank": 1.23456789, "loss": 0.5, "seconds": 2.0}


def test_gather_reads_a_forecast(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gather, "RESULTS", tmp_path)
    row: dict[str, Any] = {} | dict.fromkeys(gather.REACH, 0.123456789)
    row |= {"name": "qv", "simulated": dict.fromkeys(gather.ENDS, 0.7) | {"eval_loss_std": None}}
    row |= {"cost": {"seconds": 1.0}, "beginning": {"followed": 0.5}}
    task = {"majority_metric": 0.5, "num_outputs": 2, "guess_loss": 0.69, "frozen": 0.4}
    content = {"collect": {"seconds": 9.0}, "task": task, "candidates": [row]}
    (tmp_path / "runs" / "seed-1").mkdir(parents=True)
    write_json(tmp_path / "runs" / "seed-1" / "forecast.json", provenance(1, 10.0) | content)
    gathered = gather.gather("movie", TASKS["movie"], tmp_path / "runs")
    assert gather.simulation(gathered, "qv", 1) == (
        dict.fromkeys(gather.ENDS, 0.7) | dict.fromkeys(gather.REACH, 0.123457) | {"followed": 0.5, "seconds": 1.0}
    )


def test_the_packaged_correction_is_learnt_from_the_committed_results() -> None:
    fitted, packaged = fit(learnt_on(gather.read_tasks())), calibration.learnt()
    assert fitted.keys() == packaged.keys()
    for quantity, parts in packaged.items():
        assert fitted[quantity] == {part: pytest.approx(weights, abs=1e-7) for part, weights in parts.items()}


def test_the_table_of_bounds_agrees_with_the_results() -> None:
    statements = read_json(BENCHMARKS / "results" / "bounds.json", "run benchmarks/bounds.py")["statements"]
    page = bounds.DOCUMENT.read_text(encoding="utf-8")
    assert page == bounds.with_table(page, statements)


def test_the_pages_of_the_truth_benchmark_agree_with_the_results() -> None:
    pages = document.pages(Benchmark.read())
    for name, text in pages.items():
        assert (document.DOCS / name).read_text(encoding="utf-8") == text, f"run benchmarks/truth/document.py ({name})"
    written = {path.relative_to(document.DOCS).as_posix() for path in (document.DOCS / "truth").iterdir()}
    assert written == pages.keys() - {"truth.md"}


def test_the_table_of_held_out_tasks_is_that_of_the_results() -> None:
    found = read_json(BENCHMARKS / "results" / "held_out.json", "run benchmarks/truth/held_out.py")
    page = (document.DOCS / "accuracy.md").read_text(encoding="utf-8")

    def number(value: float) -> str:
        return f"{value:.2f}".replace("0.", ".", 1).replace("-", "−")

    rows = [*found["tasks"].values(), found["mean"] | {"covered": found["covered"], "candidates": found["candidates"]}]
    for row in rows:
        error, regret = (f"{100 * row[key]:.1f}" for key in ("error", "regret"))
        cells = [error, number(row["kendall"]), number(row["loss_kendall"]), regret.replace("0.0", "0")]
        expected = f"| {' | '.join(cells)} | {row['covered']} of {row['candidates']} "
        assert expected in page.replace("*", ""), expected
    readme = (document.DOCS.parent / "README.md").read_text(encoding="utf-8").replace("*", "")
    share = found["covered"] / found["candidates"]
    assert f"| {100 * found['mean']['error']:.1f} | – | {number(found['mean']['kendall'])} | {share:.0%} |" in readme


def test_metrics_are_written_in_their_unit() -> None:
    assert units.metric(0.0314, {"metric_name": "accuracy"}) == "3.1"
    assert units.metric(0.0314, {"metric_name": "pearson"}) == "0.031"
    assert units.metric(float("nan"), {"metric_name": "pearson"}) == "–"
