import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_rows, write_jsonl, write_model, write_tiny_run
from peft import get_peft_model
from transformers import Trainer, TrainingArguments

from foretune.cli.console import progress_bar
from foretune.errors import InputError
from foretune.forecast.costs import cache_values_per_token, num_examples, num_steps
from foretune.forecast.doctor import diagnose
from foretune.forecast.run import forecast_run
from foretune.task import load_task
from foretune.task.matching import AdaptedModule
from foretune.task.module_names import folded


def test_diagnosis(tmp_path: Path) -> None:
    wide = {
        "name": "wide",
        "peft": {"r": 40, "target_modules": "all-linear"},
        "training": {"num_train_epochs": 1},
    }
    path = write_tiny_run(tmp_path, candidates=[{"name": "a"}, wide], data={"max_length": 8})
    found = diagnose(path)
    assert (found.train.rows, found.eval.rows, found.heads) == (48, 32, ("classifier",))
    assert (found.model_class, found.dtype, found.attention) == (
        "BertForSequenceClassification",
        "float32",
        "sdpa",
    )
    first, second = found.candidates
    assert first.modules == tuple(f"bert.encoder.layer.{{0-1}}.attention.self.{name}" for name in ("query", "value"))
    assert (first.num_modules, first.steps, second.steps, second.num_modules) == (4, 12, 6, 13)
    assert first.trainable_parameters == 4 * 4 * 64 + 32 * 2 + 2
    tokens = found.train.tokens_total + found.eval.tokens_total
    assert first.estimated_cache_bytes == tokens * 2 * (32 + 2 * 64) * 2
    assert first.estimated_train_seconds > 0 and second.estimated_train_bytes > first.estimated_train_bytes > 0
    text = " ".join(found.warnings)
    assert "training examples are cut" in text and "wide: r is larger" in text


def test_warnings_about_the_data(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path)
    rows = [*tiny_rows(46, seed=3)[1::2], {"text": "bad film", "label": 0}]
    write_jsonl(tmp_path / "train.jsonl", [*rows, rows[0]])
    write_jsonl(tmp_path / "eval.jsonl", rows)
    text = " ".join(diagnose(path).warnings)
    assert "unbalanced: 0 has 1 of 25" in text and "24 evaluation texts are also training texts" in text
    assert "1 training texts occur more than once" in text


def test_timing_steps_does_not_change_the_model(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path)
    torch.manual_seed(0)
    before = sorted(file.name for file in tmp_path.iterdir())
    diagnose(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    "keys",
    [
        {"num_train_epochs": 2},
        {"num_train_epochs": 1.5, "per_device_train_batch_size": 7},
        {"gradient_accumulation_steps": 4, "dataloader_drop_last": True, "per_device_train_batch_size": 10},
        {"max_steps": 3},
        {"max_steps": 3, "gradient_accumulation_steps": 100_000},
        {"num_train_epochs": 2, "gradient_accumulation_steps": 100_000},
    ],
)
def test_steps_and_examples_are_counted_as_by_trainer(keys: dict[str, float], tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    arguments = task.candidates[0].training_arguments(
        tmp_path / "out", save_strategy="no", disable_tqdm=True, logging_strategy="no", **keys
    )
    assert isinstance(arguments, TrainingArguments)
    model = get_peft_model(task.model, task.candidates[0].peft_config())
    seen: list[int] = []

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        seen.append(len(rows))
        return task.collator(rows)

    trainer = Trainer(model, arguments, train_dataset=task.train, data_collator=collate)
    assert trainer.train().global_step == num_steps(len(task.train), arguments)
    assert num_examples(len(task.train), arguments) == pytest.approx(sum(seen), rel=0.25)


def test_names_are_folded() -> None:
    names = [f"h.{i}.attn" for i in (0, 1, 2, 5)] + ["h.3.mlp", "pooler"]
    assert folded(names) == ["pooler", "h.{0-2,5}.attn", "h.3.mlp"]


def test_shared_inputs_are_stored_once() -> None:
    modules = tuple(AdaptedModule(f"0.attention.{name}", 8, 4, 2, 24) for name in ("query", "value"))
    assert cache_values_per_token(modules, 3) == 8 + 3 * 8


@pytest.mark.parametrize("command", ["doctor", "forecast"])
def test_a_mixture_of_experts_is_warned_of(tmp_path: Path, command: str) -> None:
    run = write_tiny_run(tmp_path, peft={"target_modules": ["q_proj"]}, training={"num_train_epochs": 1})
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", "mixtral")
    if command == "doctor":
        warnings = list(diagnose(run).warnings)
    else:
        (row,) = forecast_run(run, tmp_path / "out", bar=progress_bar)["candidates"]
        warnings = row["warnings"]
    assert sum("mixture of experts (model.layers.{0-1}.mlp)" in text for text in warnings) == 1


def test_a_model_that_counts_its_padding_is_refused_before_anything_is_spent(tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, peft={"target_modules": ["c_attn"], "fan_in_fan_out": True})
    shutil.rmtree(tmp_path / "model")
    write_model(tmp_path / "model", "gpt2")
    diagnose(run)
    config = tmp_path / "model" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"padding_side": "left"}))
    with pytest.raises(InputError, match=r"model\.path: .*GPT2ForSequenceClassification.*padding_side: right"):
        diagnose(run)
