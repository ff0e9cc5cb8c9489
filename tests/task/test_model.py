from pathlib import Path

import pytest
import torch
from helpers import tiny_tokenizer, write_tiny_model
from transformers import AutoModelForSequenceClassification, set_seed

from foretune.errors import InputError
from foretune.task.config import ModelSpec
from foretune.task.model import load_model, load_tokenizer


def test_head_is_what_a_users_script_would_get(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path))
    mine = load_model(ModelSpec(path=folder), 3, ("a", "b", "c"), pad_token_id=0, seed=11).model
    after_mine = torch.rand(3)
    set_seed(11)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert torch.equal(after_mine, torch.rand(3))  # so that an adapter added next is the same too
    assert all(torch.equal(a, b) for a, b in zip(mine.parameters(), theirs.parameters(), strict=True))
    assert not mine.training and mine.config.id2label == {0: "a", 1: "b", 2: "c"}
    other = load_model(ModelSpec(path=folder), 3, seed=12).model
    assert not torch.equal(mine.get_parameter("classifier.weight"), other.get_parameter("classifier.weight"))


def test_mean_pooling_has_no_pooler(tmp_path: Path) -> None:
    spec = ModelSpec(path=str(write_tiny_model(tmp_path)), pooling="mean", attn_implementation="eager")
    one, two = (load_model(spec, 2, seed=3).model for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not any("pooler" in name for name, _ in one.named_parameters())
    assert one.config._attn_implementation == "eager"


def test_regression_and_dtype(tmp_path: Path) -> None:
    spec = ModelSpec(path=str(write_tiny_model(tmp_path)), task="regression", dtype="bfloat16")
    model = load_model(spec, 1).model
    assert (model.config.problem_type, model.config.num_labels) == ("regression", 1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


def test_pad_token_falls_back_on_the_end_of_sequence(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="neither a pad"):
        load_tokenizer(ModelSpec(path=str(tmp_path)))
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSpec(path=str(tmp_path))).pad_token == "[SEP]"
