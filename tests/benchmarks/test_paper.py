"""The paper's experiments on stand-ins: a tiny RoBERTa and local rows in place of the hub's."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_rows, tiny_tokenizer, write_jsonl
from torch.testing import assert_close
from transformers import RobertaConfig, RobertaForSequenceClassification

from foretune.results import provenance

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.append(str(BENCHMARKS))

from paper import document, reading, results  # ruff: ignore[module-import-not-at-top-of-file]
from paper.experiment import Experiment, Work  # ruff: ignore[module-import-not-at-top-of-file]
from paper.ntks import condition_number, published_kernel  # ruff: ignore[module-import-not-at-top-of-file]

GLUE = sorted(path.stem for path in (BENCHMARKS / "paper").glob("glue-*.yaml"))
SHORT = {"max_steps": 3, "warmup_steps": 0, "gradient_accumulation_steps": 1, "use_cpu": True}


def write_roberta(folder: Path, layers: int) -> Path:
    tokenizer = tiny_tokenizer()
    config = RobertaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        pad_token_id=tokenizer.pad_token_id,
        type_vocab_size=2,
        initializer_range=0.3,
    )
    torch.manual_seed(0)
    RobertaForSequenceClassification(config).roberta.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stand_in(name: str, folder: Path, layers: int = 1) -> Work:
    """An experiment on RoBERTa and GLUE, with the model and the tables where a machine without the hub has them."""
    experiment = Experiment.read(BENCHMARKS / "paper" / f"{name}.yaml")
    experiment.run["model"]["path"] = str(write_roberta(folder / "roberta", layers))
    if experiment.measures == "training":
        experiment.run["training"] |= SHORT
    experiment.run["data"] |= {"train_samples": 24, "eval_samples": 8}
    for task in experiment.tasks.values():
        columns = task["data"]["text"] if isinstance(task["data"]["text"], list) else [task["data"]["text"]]
        for split, seed in (("train", 1), ("eval", 2)):
            rows: list[dict[str, Any]] = [
                {column: row["text"] for column in columns} | {"label": row["label"]} for row in tiny_rows(32, seed)
            ]
            path = folder / f"{split}-{'-'.join(columns)}.jsonl"
            assert set(task["data"][split]) <= {"hub", "name", "split"}
            task["data"][split] = str(write_jsonl(path, rows))
    return Work(name, experiment, folder / "runs")


@pytest.mark.parametrize("name", GLUE)
def test_every_task_and_placement_on_glue_loads(name: str, tmp_path: Path) -> None:
    work = stand_in(name, tmp_path, layers=12)
    for task in work.experiment.tasks:
        loaded = work.load(task)
        assert len(loaded.task.train) == 24
        assert len(loaded.adaptations) == len(work.experiment.placements) * len(work.experiment.strengths)
        assert all(adaptation.modules for adaptation in loaded.adaptations)


def test_cells_are_measured_once_and_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = stand_in("glue-placements", tmp_path)
    experiment = work.experiment
    experiment.tasks = {"sst2": experiment.tasks["sst2"]}
    experiment.placements = {"query-value": experiment.placements["query-value"]}
    work.run(0)
    found = work.gather()
    assert found["missing"] == 0 and [len(found[kind]) for kind in ("runs", "kernels", "forecasts")] == [2, 1, 2]
    free, held = found["runs"]
    assert (free["strength"], held["strength"]) == (0, 50) and held["distance"] < free["distance"]
    assert 0 <= held["agreement"] <= 1 and held["divergence"] >= 0

    monkeypatch.setattr(Work, "training", lambda *_: pytest.fail("trained again"))
    again = Work("another", experiment, tmp_path / "runs")
    again.run(0)
    assert again.gather()["runs"] == found["runs"]


def test_the_usual_rule_leaves_cells_what_they_were(tmp_path: Path) -> None:
    work = stand_in("glue-strength", tmp_path)
    usual = [cell.identity for cell in work.cells(0)]
    assert not any("rule" in identity for identity in usual)
    work.experiment.rule = "selective"
    assert [cell.identity for cell in work.cells(0)] == [identity | {"rule": "selective"} for identity in usual]
    assert {each.proximal.rule for each in work.task("sst2").candidates} == {"selective"}


def test_a_spread_is_that_of_means_over_tasks_between_seeds() -> None:
    rows = [{"task": task, "seed": seed, "x": task + seed} for task in (0, 10) for seed in (0, 2)]
    assert reading.by_seed(rows, "x") == [5, 7]
    assert reading.spread(reading.by_seed(rows, "x"), "+.1f") == "+6.0 ± 1.4"
    assert reading.spread([0.05], ".1f", 100) == "5.0"


def test_gradient_descent_stays_within_its_certificate(tmp_path: Path) -> None:
    work = stand_in("glue-descent", tmp_path)
    task = next(iter(work.experiment.tasks))
    rows = [work.descent(task, f"query-value-{strength:g}", 0, strength) for strength in (0.0, 150.0)]
    for row in rows:
        assert row["gap"] <= row["gap_bound"] * (1 + 1e-4)
        assert row["output_gap"] <= row["output_gap_bound"] * (1 + 1e-4)
        assert row["losses"][-1] < row["losses"][0]
    assert rows[1]["distance"] < rows[0]["distance"]


def test_the_published_kernel_is_that_of_signs() -> None:
    jacobian = torch.randn(5, 2, 40, dtype=torch.float64)
    rows = jacobian.flatten(0, 1)
    kernel = published_kernel(jacobian)
    assert_close(kernel, rows @ rows.sign().T, rtol=1e-5, atol=1e-5)
    assert float((kernel - kernel.T).norm()) > 0.1 * float(kernel.norm())
    assert condition_number(torch.diag(torch.tensor([1.0, -4.0]))) == pytest.approx(4)


def test_the_page_and_its_pictures_are_those_of_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = reading.DOCS
    monkeypatch.setattr(reading, "DOCS", tmp_path)
    page = document.document(results.read_all())
    assert page == (docs / "paper.md").read_text(encoding="utf-8"), "run benchmarks/paper/document.py"
    made, written = (
        {path.name: path.read_text(encoding="utf-8") for path in (folder / "paper").iterdir()}
        for folder in (tmp_path, docs)
    )
    assert made == written


def test_results_come_back_without_curves_and_with_infinite_numbers(tmp_path: Path) -> None:
    settings = {"placements": {"a": {}, "b": {}}, "tasks": {"t": {}}, "strengths": [0.0]}
    run = {"task": "t", "seed": 0, "strength": 0.0, "loss": 0.123456789}
    kernel = {"task": "t", "seed": 0, "condition_number": math.inf}
    content = {"settings": settings, "runs": [run | {"losses": [1.0, 0.5]}], "kernels": [kernel], "forecasts": []}
    results.write(tmp_path / "result.json", provenance(0, 1.0) | content)
    found = results.read(tmp_path / "result.json")
    assert found["runs"] == [run | {"loss": 0.123457}] and found["kernels"] == [kernel] and found["forecasts"] == []
