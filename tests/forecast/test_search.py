"""The search for a better fine-tune: its rounds, its recommendation, and forecasts that equal those of ``forecast``."""

from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run
from peft import LoraConfig
from transformers import TrainingArguments

import foretune as ft
from foretune.forecast.forecast import forecast, ranked
from foretune.forecast.search import GIVEN_UP, Recommendation, Search


def prepared(
    folder: Path, rate: float, mine: list[dict[str, Any]] | None = None, **training: Any
) -> tuple[ft.Tangents, ft.Space]:
    task = ft.load_task(write_tiny_run(folder, candidates=mine or []))
    keys: dict[str, Any] = {"output_dir": str(folder), "per_device_train_batch_size": 8, "seed": 0, **training}
    arguments = TrainingArguments(learning_rate=rate, **keys)
    space = ft.search_space(task, LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"]), arguments)
    return ft.collect(task), space


def searched(folder: Path, rate: float, **training: Any) -> tuple[Search, Recommendation]:
    tangents, space = prepared(folder, rate, **training)
    search = Search(tangents._starts, tangents.task, space)
    return search, search.run()


def test_the_search_moves_away_from_a_learning_rate_that_is_far_too_low(tmp_path: Path) -> None:
    search, found = searched(tmp_path, 1e-5, num_train_epochs=2)
    rates = {candidate.training["learning_rate"] for candidate in (each.candidate for each in found.searched)}
    assert max(rates) > 20 * 1e-5
    assert found.base.candidate.training["learning_rate"] == pytest.approx(1e-5)
    assert found.recommended.eval_metric > found.base.eval_metric
    assert not found.recommended.may_collapse
    assert {point.placement.label for point in search.found} >= {"query+value", "all-linear", "attention", "mlp"}
    assert {point.rank for point in search.found} == {1, 4, 16}
    assert any(point.step % 2 for point in search.found), "rates between whole steps"
    assert any("layers" in point.placement.label for point in search.found)


def test_the_best_run_that_is_not_at_risk_is_recommended(tmp_path: Path) -> None:
    mine = [{"name": "mine", "peft": {"r": 7}}, {"name": "longer", "training": {"num_train_epochs": 3}}]
    tangents, space = prepared(tmp_path, 1e-3, mine, max_steps=6)
    found, task = tangents.recommend(space), tangents.task  # the Python interface
    assert isinstance(found, ft.Recommendation) and found.searched == ranked(found.searched, task)
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
        (alone,) = forecast(tangents._starts, task, [each.candidate])
        assert alone.eval_metric == pytest.approx(each.eval_metric, abs=1e-6)
        assert alone.eval_loss == pytest.approx(each.eval_loss, rel=1e-4)


def test_the_best_run_is_recommended_if_all_may_collapse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit in ("STEP", "TRAVEL"):
        monkeypatch.setattr(f"foretune.forecast.calibration.{limit}", 1e-9)
    _, found = searched(tmp_path, 1e-3, max_steps=4)
    assert found.recommended is found.searched[0] and found.recommended.may_collapse


def test_the_space_is_built_around_the_arguments_of_the_task(tmp_path: Path) -> None:
    task = ft.load_task(write_tiny_run(tmp_path, training={"max_steps": 4}))
    space = ft.search_space(task, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear"))
    assert space.base.training == task.candidates[0].training and space.base.peft.r == 4
