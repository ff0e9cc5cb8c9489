import json
from pathlib import Path

from helpers import tiny_model
from peft import LoraConfig, TaskType, get_peft_model
from transformers import TrainingArguments

from foretune.task import Candidate


def test_peft_config_returns_a_copy() -> None:
    candidate = Candidate("all", LoraConfig(target_modules="all-linear"))
    get_peft_model(tiny_model("bert"), candidate.peft_config())
    assert candidate.peft.target_modules == "all-linear"
    assert candidate.peft_config().task_type == TaskType.SEQ_CLS


def test_training_arguments_have_defaults_for_keys_that_are_not_set(tmp_path: Path) -> None:
    candidate = Candidate("a", LoraConfig(), {"learning_rate": 0.5, "seed": 9})
    arguments = candidate.training_arguments(tmp_path, use_cpu=True)
    assert (arguments.learning_rate, arguments.seed, arguments.report_to) == (0.5, 9, [])
    expected = TrainingArguments(str(tmp_path), learning_rate=0.5, seed=9, use_cpu=True, report_to="none")
    assert arguments.to_dict() == expected.to_dict()


def test_dictionaries_of_a_candidate_are_json() -> None:
    candidate = Candidate("a", LoraConfig(target_modules=["b", "a"], rank_pattern={"x": 2}), {"optim": "sgd"})
    text = json.dumps([candidate.peft_dict(), candidate.training_dict()])
    assert json.loads(text)[0] == {
        "type": "lora",
        "r": 8,
        "target_modules": ["a", "b"],
        "lora_alpha": 8,
        "rank_pattern": {"x": 2},
    }
