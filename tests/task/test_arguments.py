"""The peft and training sections, as users write them or paste them from saved adapters."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import write_tiny_run
from peft import LoraConfig
from transformers import SchedulerType, TrainingArguments

from foretune.task import build_candidates, load_config, load_run
from foretune.task.arguments import build_lora, check_peft, check_training
from foretune.task.combinations import peft_problems, training_problems
from foretune.task.config import to_yaml

SCHEDULES: dict[str, dict[str, Any]] = {
    "cosine": {"num_cycles": 0.5},
    "cosine_with_restarts": {"num_cycles": 2},
    "polynomial": {"lr_end": "1e-6", "power": 2},
    "inverse_sqrt": {"timescale": 100},
    "cosine_with_min_lr": {"min_lr_rate": 0.1},
    "cosine_warmup_with_min_lr": {"min_lr": "1e-5"},
    "warmup_stable_decay": {"num_decay_steps": 10, "decay_type": "linear"},
    "reduce_lr_on_plateau": {"factor": 0.5, "patience": 2},
    "greedy": {"factor": 0.9},
}


def saved(folder: Path, **keys: Any) -> dict[str, Any]:
    """The content of an ``adapter_config.json`` that peft wrote."""
    config = LoraConfig(task_type="SEQ_CLS", base_model_name_or_path="org/model", inference_mode=True, **keys)
    config.save_pretrained(str(folder))
    return dict(json.loads((folder / "adapter_config.json").read_text()))


def test_a_pasted_adapter_config_gives_the_saved_config(tmp_path: Path) -> None:
    keys: dict[str, Any] = {"r": 2, "lora_alpha": 4, "target_modules": ["query"], "modules_to_save": ["classifier"]}
    path = write_tiny_run(tmp_path)
    content = yaml.safe_load(path.read_text()) | {"peft": saved(tmp_path, **keys)}
    assert content["peft"]["inference_mode"] and content["peft"]["layers_pattern"] is None
    path.write_text(json.dumps(content))
    run = load_run(path)
    (candidate,) = run.task.candidates
    assert candidate.peft_config() == dataclasses.replace(build_lora(keys), task_type="SEQ_CLS")
    assert not candidate.peft.inference_mode and run.adaptations[0].num_trainable > 0
    *_, note = run.warnings
    assert note == (
        "peft: keys that only describe a saved adapter are ignored "
        "(base_model_name_or_path, inference_mode, peft_version)"
    )
    path.write_text(to_yaml(run.config))
    again = load_run(path)
    assert note not in again.warnings and again.task.candidates[0].to_json() == candidate.to_json()


def test_null_keys_of_a_newer_peft_are_ignored_in_a_pasted_config(tmp_path: Path) -> None:
    newer = saved(tmp_path, r=2) | {
        "new_config": None,
        "peft_version": None,
        "inference_mode": False,
        "base_model_name_or_path": "",
    }
    checked, problems, notes = check_peft(newer, "peft")
    assert problems == [] and checked["r"] == 2 and "new_config" not in checked
    assert notes == ["peft: keys that this version of peft does not have are ignored (new_config)"]
    assert check_peft({"new_config": None}, "peft")[1] and check_peft(newer | {"new_config": 1}, "peft")[1]


def test_nulls_of_a_candidate_override_the_base_with_defaults(tmp_path: Path) -> None:
    peft = {"bias": "all", "rank_pattern": {"query": 2}, "layers_to_transform": [1], "lora_dropout": 0.5}
    nulls = dict.fromkeys([*peft, "type", "task_type", "auto_mapping", "revision"])
    config = load_config(write_tiny_run(tmp_path, peft=peft, candidates=[{"name": "plain", "peft": nulls}]))
    (candidate,) = build_candidates(config)
    assert candidate.peft_dict() == {"type": "lora", "r": 4, "target_modules": ["query", "value"], "lora_alpha": 8}
    assert config.notes == ()


def test_notes_name_the_candidate(tmp_path: Path) -> None:
    candidates = [{"name": "a", "peft": {"r": 2, "peft_type": "LORA", "revision": "main"}}]
    (note,) = load_config(write_tiny_run(tmp_path, candidates=candidates)).notes
    assert note == "candidates[0] (a).peft: keys that only describe a saved adapter are ignored (revision)"


@pytest.mark.parametrize(
    "method", [True, False, "gaussian", "olora", "pissa", "pissa_niter_4", "orthogonal", "lora_ga"]
)
def test_every_initialisation_of_peft_is_accepted(method: bool | str) -> None:
    checked, problems, _ = check_peft({"init_lora_weights": method}, "peft")
    assert problems == [] and peft_problems(checked, "peft") == []


def test_defaults_pass_the_checks(tmp_path: Path) -> None:
    assert check_peft(saved(tmp_path), "peft")[1] == []
    fields = {field.name: field for field in dataclasses.fields(TrainingArguments) if field.init}
    given = {name: field.default for name, field in fields.items() if field.default is not dataclasses.MISSING}
    assert check_training({key: value for key, value in given.items() if value is not None}, "training")[1] == []


@pytest.mark.parametrize("kind", [kind.value for kind in SchedulerType])
@pytest.mark.parametrize(("steps", "warmup"), [(-1, 0), (-1, 1000), (1, 0), (12, 0.1), (10**9, 5)])
def test_every_schedule_is_accepted(kind: str, steps: int, warmup: int | float) -> None:
    keys = {"lr_scheduler_type": kind, "lr_scheduler_kwargs": SCHEDULES.get(kind, {})}
    length = {"max_steps": steps, "warmup_steps": warmup, "eval_strategy": "epoch"}
    checked, problems = check_training(keys | length, "training")
    assert problems == [] and training_problems(checked, False, "training") == []


@pytest.mark.parametrize(
    "keys",
    [
        {"optim": "sgd", "optim_args": "momentum=0.9, nesterov=true"},
        {"optim": "adagrad", "optim_args": "lr_decay=0.1"},
        {"optim": "rmsprop"},
        {"optim": "adafactor"},
        {"optim": "adamw_torch_fused", "learning_rate": "1e-3"},
        {"lr_scheduler_kwargs": '{"num_cycles": 2}', "lr_scheduler_type": "cosine"},
        {"label_smoothing_factor": 0},
    ],
)
def test_optimisers_and_their_arguments_are_accepted(keys: dict[str, Any]) -> None:
    checked, problems = check_training(keys, "training")
    assert problems == [] and training_problems(checked, True, "training") == []
