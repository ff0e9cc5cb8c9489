"""The search for what to run instead: its rounds, what it recommends, and forecasts that are those of ``forecast``."""

from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run
from peft import LoraConfig
from transformers import TrainingArguments

import foretune as ft
from foretune.forecast.forecast import forecast, ranked
from foretune.forecast.search import GIVEN_UP, Recommendation, Search
from foretune.task import Candidate


def searched(folder: Path, rate: float, mine: list[dict[str, Any]] | None = None) -> tuple[Search, Recommendation]:
    task = ft.load_task(write_tiny_run(folder, candidates=mine or []))
    tangents = ft.collect(task)
    arguments = TrainingArguments(
        output_dir=str(folder), learning_rate=rate, num_train_epochs=2, per_device_train_batch_size=8, seed=0
    )
    space = ft.search_space(task, LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"]), arguments)
    search = Search(tangents._starts, task, space)
    return search, search.run()


def test_a_learning_rate_far_too_low_is_left(tmp_path: Path) -> None:
    search, found = searched(tmp_path, 1e-5)
    rates = {candidate.training["learning_rate"] for candidate in (each.candidate for each in found.searched)}
    assert max(rates) > 20 * 1e-5
    assert found.base.candidate.training["learning_rate"] == pytest.approx(1e-5)
    assert found.recommended.eval_metric > found.base.eval_metric
    assert not found.recommended.may_collapse
    assert {point.placement.label for point in search.found} >= {"query+value", "all-linear", "attention", "mlp"}
    assert {point.rank for point in search.found} == {1, 4, 16}
    assert any(point.step % 2 for point in search.found), "rates between whole steps"
    assert any("layers" in point.placement.label for point in search.found)


def test_what_is_recommended_is_the_best_that_is_safe(tmp_path: Path) -> None:
    mine = [{"name": "mine", "peft": {"r": 7}}, {"name": "longer", "training": {"num_train_epochs": 3}}]
    search, found = searched(tmp_path, 1e-3, mine)
    task = search.task
    assert found.searched == ranked(found.searched, task) and len(found.searched) == len(search.found) + 2
    names = [each.candidate.name for each in found.searched]
    assert len(set(names)) == len(names) and {"mine", "longer", "base"} <= set(names)
    safe = [each for each in found.searched if not each.may_collapse]
    assert found.recommended is safe[0]
    enough = [each for each in safe if each.eval_metric >= found.recommended.eval_metric - GIVEN_UP]
    least = min(each.trainable_parameters for each in enough)
    lighter = found.lighter or found.recommended
    assert lighter in enough and lighter.trainable_parameters == least
    assert found.peft_config.r == found.recommended.candidate.peft.r
    for each in (found.recommended, found.base):
        (alone,) = forecast(search.starts, task, [each.candidate])
        assert alone.eval_metric == pytest.approx(each.eval_metric, abs=1e-6)
        assert alone.eval_loss == pytest.approx(each.eval_loss, rel=1e-4)


def test_where_all_may_collapse_the_best_of_these_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("STEP", "TRAVEL"):
        monkeypatch.setattr(f"foretune.forecast.calibration.{limit}", 1e-9)
    _, found = searched(tmp_path, 1e-3)
    assert found.recommended is found.searched[0] and found.recommended.may_collapse


def test_the_python_interface_searches_too(tmp_path: Path) -> None:
    task = ft.load_task(write_tiny_run(tmp_path, training={"max_steps": 4}))
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    best = ft.collect(task).recommend(ft.search_space(task, config))
    assert isinstance(best, ft.Recommendation) and isinstance(best.peft_config, LoraConfig)
    assert (
        isinstance(best.recommended.candidate, Candidate)
        and best.base.candidate.training == task.candidates[0].training
    )
