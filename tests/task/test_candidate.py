import json
from pathlib import Path

from helpers import tiny_model
from peft import LoraConfig, TaskType, get_peft_model
from transformers import TrainingArguments

from foretune.task import Candidate


def test_config_is_fresh_each_time() -> None:
    candidate = Candidate("all", LoraConfig(target_modules="all-linear"))
    get_peft_model(tiny_model("bert"), candidate.peft_config())
    assert candidate.peft.target_modules == "all-linear"
    assert candidate.peft_config().task_type == TaskType.SEQ_CLS


def test_arguments_are_the_defaults_but_for_what_was_set(tmp_path: Path) -> None:
    candidate = Candidate("a", LoraConfig(), {"learning_rate": 0.5, "seed": 9})
    mine = candidate.training_arguments(tmp_path, use_cpu=True)
    assert (mine.learning_rate, mine.seed, mine.report_to) == (0.5, 9, [])
    default = TrainingArguments(str(tmp_path), learning_rate=0.5, seed=9, use_cpu=True, report_to="none")
    assert mine.to_dict() == default.to_dict()


def test_summaries_are_json() -> None:
    candidate = Candidate("a", LoraConfig(target_modules=["b", "a"], rank_pattern={"x": 2}), {"optim": "sgd"})
    text = json.dumps([candidate.peft_dict(), candidate.training_dict()])
    assert json.loads(text)[0] == {
        "type": "lora",
        "r": 8,
        "target_modules": ["a", "b"],
        "lora_alpha": 8,
        "rank_pattern": {"x": 2},
    }
