from pathlib import Path

import pytest
import torch
from helpers import tiny_tokenizer, write_tiny_model
from transformers import AutoModelForSequenceClassification, set_seed

from foretune.errors import InputError
from foretune.task.config import ModelSpec
from foretune.task.model import load_model, load_tokenizer


def test_a_new_head_is_the_same_as_in_a_users_script(tmp_path: Path) -> None:
    folder = str(write_tiny_model(tmp_path))
    loaded = load_model(ModelSpec(path=folder), 3, ("a", "b", "c"), pad_token_id=0, seed=11).model
    next_draw = torch.rand(3)
    set_seed(11)
    expected = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=3)
    assert torch.equal(next_draw, torch.rand(3)), "an adapter that is added next must have the same start"
    assert all(torch.equal(a, b) for a, b in zip(loaded.parameters(), expected.parameters(), strict=True))
    assert not loaded.training and loaded.config.id2label == {0: "a", 1: "b", 2: "c"}
    other = load_model(ModelSpec(path=folder), 3, seed=12).model
    assert not torch.equal(loaded.get_parameter("classifier.weight"), other.get_parameter("classifier.weight"))


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


def test_without_a_padding_token_the_end_of_sequence_token_is_used(tmp_path: Path) -> None:
    write_tiny_model(tmp_path)
    tokenizer = tiny_tokenizer()
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="neither a padding"):
        load_tokenizer(ModelSpec(path=str(tmp_path)))
    tokenizer.eos_token = "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSpec(path=str(tmp_path))).pad_token == "[SEP]"
