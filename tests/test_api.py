"""The Python interface: names come when they are used, defaults are the task's own, objects print in a line."""

import subprocess
import sys

import pytest
from helpers import write_tiny_run
from peft import LoHaConfig, LoraConfig
from transformers import TrainingArguments

import foretune as ft
from foretune.forecast.forecast import forecast
from foretune.lazy import PLACE_OF

LORA = LoraConfig(r=4, lora_alpha=8, target_modules=["query", "value"])


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> ft.Task:
    folder = tmp_path_factory.mktemp("run")
    return ft.load_task(write_tiny_run(folder, training={"learning_rate": 0.01, "num_train_epochs": 3}))


@pytest.fixture(scope="module")
def tangents(task: ft.Task) -> ft.Tangents:
    return ft.collect(task)


def test_importing_loads_nothing_heavy() -> None:
    code = "import sys, foretune; print(sorted({'torch', 'transformers', 'peft', 'numpy'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_every_public_name_is_there() -> None:
    assert set(PLACE_OF) <= set(dir(ft))
    assert all(getattr(ft, name) is not None for name in dir(ft))
    with pytest.raises(AttributeError, match="no attribute 'forcast'"):
        ft.forcast  # ruff: ignore[useless-expression]


def test_the_tasks_own_arguments_are_the_default(task: ft.Task, tangents: ft.Tangents) -> None:
    (expected,) = forecast(tangents._starts, task, task.candidates)
    ours = tangents.forecast(LORA)
    assert ours.runs[0].curve == expected.runs[0].curve and ours.steps == 18
    other = tangents.forecast(LORA, TrainingArguments(output_dir="unused", max_steps=2, seed=0, use_cpu=True))
    assert other.steps == 2
    assert tangents.ntk(LORA).matrix.equal(tangents.ntk(LORA, seed=0).matrix)
    assert not tangents.ntk(LORA).matrix.equal(tangents.ntk(LORA, seed=1).matrix)


def test_centred_predictions_are_no_logits(task: ft.Task, tangents: ft.Tangents) -> None:
    kernel = tangents.ntk(LORA)
    scores = set()
    for strength in (1e-2, 1.0, 1e2):
        fx_eval = kernel.ridge(strength).fx_eval
        with pytest.raises(ValueError, match=r"kernel\.outputs"):
            task.compute_metrics(fx_eval, task.eval["labels"])
        scores.add(task.compute_metrics(kernel.outputs(fx_eval), task.eval["labels"])["eval_metric"])
    assert max(scores) > 0.5


def test_objects_print_in_a_line(task: ft.Task, tangents: ft.Tangents) -> None:
    kernel = tangents.ntk(LORA)
    things = [
        task,
        tangents,
        kernel,
        kernel.spectrum(),
        kernel.ridge(1.0),
        kernel.logistic(1.0),
        tangents.forecast(LORA),
    ]
    for thing in things:
        text = repr(thing)
        assert text.startswith(type(thing).__name__) and "\n" not in text and len(text) < 400
    assert "num_train=48" in repr(kernel) and "y=(80, 1)" in repr(kernel)


def test_what_cannot_be_forecast_is_refused(task: ft.Task, tangents: ft.Tangents) -> None:
    with pytest.raises(ft.InputError, match="metric_for_best_model"):
        tangents.forecast(LORA, TrainingArguments(output_dir="unused", metric_for_best_model="f1"))
    with pytest.raises(ft.InputError, match="use_dora"):
        tangents.forecast(LoraConfig(target_modules=["query"], use_dora=True))
    loha = LoHaConfig(target_modules=["query"])
    for use in (tangents.ntk, tangents.forecast, lambda config: ft.search_space(task, config)):
        with pytest.raises(ft.InputError, match="LoHa"):
            use(loha)
