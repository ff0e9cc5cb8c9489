"""Outputs for a text must not depend on the amount of padding in its batch."""

from typing import Any

import pytest
import torch
from cases import tiny_task
from helpers import KINDS, ONE_BY_ONE

from foretune.errors import InputError
from foretune.tangents import check_padding_invariant, check_runs, collect

RIGHT = [kind for kind in (*KINDS, *ONE_BY_ONE) if kind != "xlnet"]
LEFT = ["llama", "xlnet"]


@pytest.mark.parametrize(("kind", "side"), [*((kind, "right") for kind in RIGHT), *((kind, "left") for kind in LEFT)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_models_that_ignore_padding_pass(kind: str, side: str, dtype: torch.dtype) -> None:
    if not (kind == "xlnet" and dtype == torch.float64):  # it computes positions in float32
        check_padding_invariant(tiny_task(kind, padding_side=side, dtype=dtype))


@pytest.mark.parametrize(
    ("kind", "side", "other"), [("gpt2", "left", "right"), ("roberta", "left", "right"), ("xlnet", "right", "left")]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_message_names_the_padding_side_that_works(kind: str, side: str, other: str, dtype: torch.dtype) -> None:
    task = tiny_task(kind, padding_side=side, dtype=dtype)
    with pytest.raises(InputError, match=rf"padding on the {side}.*padding_side: {other}") as caught:
        check_padding_invariant(task, "run.yaml: model.path")
    assert caught.value.where == "run.yaml: model.path" and type(task.model).__name__ in str(caught.value)
    assert task.tokenizer.padding_side == side
    with pytest.raises(InputError, match="padding_side"):
        collect(task)


def test_a_model_that_ignores_the_mask_is_refused() -> None:
    task: Any = tiny_task("bert")
    forward = task.model.forward
    task.model.forward = lambda attention_mask=None, **inputs: forward(**inputs)
    with pytest.raises(InputError, match=r"padding.*Use a model"):
        check_padding_invariant(task)


def test_texts_of_equal_length_pass_without_padding() -> None:
    task = tiny_task("gpt2", padding_side="left")
    rows = [number for number, row in enumerate(task.train) if len(row["input_ids"]) == len(task.train[0]["input_ids"])]
    task.train = task.eval = task.train.select(rows)
    check_padding_invariant(task)


@pytest.mark.parametrize("kind", ["t5", "bert"])
def test_the_message_says_why_a_model_cannot_run_on_the_texts(kind: str) -> None:
    task: Any = tiny_task(kind)
    if kind == "bert":
        task.model.forward = lambda input_ids, **_: task.model.config.no_such_key
    for check in (check_padding_invariant, check_runs):
        with pytest.raises(InputError, match=r"cannot be run on the texts \(.*(decoder_start|no_such_key)"):
            check(task)


def test_a_real_run_may_see_padding() -> None:
    check_runs(tiny_task("gpt2", padding_side="left"))
