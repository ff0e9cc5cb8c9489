"""The paper's experiments with a tiny RoBERTa and local rows instead of the hub's model and data."""

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


def local_experiment(name: str, folder: Path, layers: int = 1) -> Work:
    """An experiment on RoBERTa and GLUE, with a local model and local tables instead of the hub's."""
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
def test_all_tasks_and_placements_on_glue_load(name: str, tmp_path: Path) -> None:
    work = local_experiment(name, tmp_path, layers=12)
    for task in work.experiment.tasks:
        loaded = work.load(task)
        assert len(loaded.task.train) == 24
        assert len(loaded.adaptations) == len(work.experiment.placements) * len(work.experiment.strengths)
        assert all(adaptation.modules for adaptation in loaded.adaptations)


def test_cells_are_measured_once_and_shared_between_experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = local_experiment("glue-placements", tmp_path)
    experiment = work.experiment
    experiment.tasks = {"sst2": experiment.tasks["sst2"]}
    experiment.placements = {"query-value": experiment.placements["query-value"]}
    work.run(0)
    gathered = work.gather()
    assert gathered["missing"] == 0 and [len(gathered[kind]) for kind in ("runs", "kernels", "forecasts")] == [2, 1, 2]
    free, penalised = gathered["runs"]
    assert (free["strength"], penalised["strength"]) == (0, 50) and penalised["distance"] < free["distance"]
    assert 0 <= penalised["agreement"] <= 1 and penalised["divergence"] >= 0

    monkeypatch.setattr(Work, "training", lambda *_: pytest.fail("trained again"))
    again = Work("another", experiment, tmp_path / "runs")
    again.run(0)
    assert again.gather()["runs"] == gathered["runs"]


def test_the_default_rule_does_not_change_the_identity_of_cells(tmp_path: Path) -> None:
    work = local_experiment("glue-strength", tmp_path)
    default = [cell.identity for cell in work.cells(0)]
    assert not any("rule" in identity for identity in default)
    work.experiment.rule = "selective"
    assert [cell.identity for cell in work.cells(0)] == [identity | {"rule": "selective"} for identity in default]
    assert {candidate.proximal.rule for candidate in work.task("sst2").candidates} == {"selective"}


def test_the_spread_is_computed_between_seeds_from_means_over_tasks() -> None:
    rows = [{"task": task, "seed": seed, "x": task + seed} for task in (0, 10) for seed in (0, 2)]
    assert reading.by_seed(rows, "x") == [5, 7]
    assert reading.spread(reading.by_seed(rows, "x"), "+.1f") == "+6.0 ± 1.4"
    assert reading.spread([0.05], ".1f", 100) == "5.0"


def test_gradient_descent_stays_within_its_certificate(tmp_path: Path) -> None:
    work = local_experiment("glue-descent", tmp_path)
    task = next(iter(work.experiment.tasks))
    rows = [work.descent(task, f"query-value-{strength:g}", 0, strength) for strength in (0.0, 150.0)]
    for row in rows:
        assert row["gap"] <= row["gap_bound"] * (1 + 1e-4)
        assert row["output_gap"] <= row["output_gap_bound"] * (1 + 1e-4)
        assert row["losses"][-1] < row["losses"][0]
    assert rows[1]["distance"] < rows[0]["distance"]


def test_the_published_kernel_multiplies_gradients_by_signs() -> None:
    jacobian = torch.randn(5, 2, 40, dtype=torch.float64)
    rows = jacobian.flatten(0, 1)
    kernel = published_kernel(jacobian)
    assert_close(kernel, rows @ rows.sign().T, rtol=1e-5, atol=1e-5)
    assert float((kernel - kernel.T).norm()) > 0.1 * float(kernel.norm())
    assert condition_number(torch.diag(torch.tensor([1.0, -4.0]))) == pytest.approx(4)


def test_the_page_and_its_pictures_agree_with_the_results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    docs = reading.DOCS
    monkeypatch.setattr(reading, "DOCS", tmp_path)
    page = document.document(results.read_all())
    assert page == (docs / "paper.md").read_text(encoding="utf-8"), "run benchmarks/paper/document.py"
    made, written = (
        {path.name: path.read_text(encoding="utf-8") for path in (folder / "paper").iterdir()}
        for folder in (tmp_path, docs)
    )
    assert made == written


def test_results_are_written_without_curves_and_with_infinite_numbers(tmp_path: Path) -> None:
    settings = {"placements": {"a": {}, "b": {}}, "tasks": {"t": {}}, "strengths": [0.0]}
    run = {"task": "t", "seed": 0, "strength": 0.0, "loss": 0.123456789}
    kernel = {"task": "t", "seed": 0, "condition_number": math.inf}
    content = {"settings": settings, "runs": [run | {"losses": [1.0, 0.5]}], "kernels": [kernel], "forecasts": []}
    results.write(tmp_path / "result.json", provenance(0, 1.0) | content)
    gathered = results.read(tmp_path / "result.json")
    assert (
        gathered["runs"] == [run | {"loss": 0.123457}]
        and gathered["kernels"] == [kernel]
        and gathered["forecasts"] == []
    )
