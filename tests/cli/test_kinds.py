"""Forecast, train and compare through the command line, for every supported kind of task and model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_rows, tiny_tokenizer, write_jsonl, write_tiny_model, write_tiny_run
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel, PreTrainedModel

from foretune.cli import main
from foretune.results import read_json

GENTLE = {"learning_rate": 2e-3, "optim": "sgd", "lr_scheduler_type": "constant", "num_train_epochs": 2}


def saved(folder: Path, model: PreTrainedModel) -> Path:
    """Save a model in single precision, with the tokenizer of the synthetic reviews."""
    model.float().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def llama(folder: Path) -> Path:
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    config = LlamaConfig(
        vocab_size=len(tiny_tokenizer()), num_key_value_heads=2, pad_token_id=0, initializer_range=0.2, **size
    )
    return saved(folder, LlamaModel(config))


def gpt2(folder: Path) -> Path:
    size: dict[str, Any] = {"n_embd": 32, "n_inner": 48, "n_layer": 2, "n_head": 4, "n_positions": 40}
    drops: dict[str, Any] = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    config = GPT2Config(vocab_size=len(tiny_tokenizer()), pad_token_id=0, initializer_range=0.2, **size, **drops)
    return saved(folder, GPT2Model(config))


Kind = tuple[Callable[[Path], Path], dict[str, Any], list[str] | str]
KINDS: dict[str, Kind] = {
    "encoder": (write_tiny_model, {}, ["query", "value"]),
    "regression": (write_tiny_model, {"task": "regression"}, "all-linear"),
    "mean pooling": (write_tiny_model, {"pooling": "mean"}, "all-linear"),
    "decoder": (llama, {}, ["q_proj", "v_proj"]),
    "Conv1D": (gpt2, {}, ["c_attn"]),
}
DEVICES = [True, pytest.param(False, marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.mark.parametrize("use_cpu", DEVICES, ids=["cpu", "gpu"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_forecast_describes_the_run_that_is_trained(
    kind: str, use_cpu: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build, model, targets = KINDS[kind]
    torch.manual_seed(0)
    run = write_tiny_run(
        tmp_path,
        model=model,
        peft={"target_modules": targets, "lora_alpha": 32},
        training=GENTLE | {"use_cpu": use_cpu},
    )
    build(tmp_path / "model")
    if model.get("task") == "regression":
        for split, seed in (("train", 1), ("eval", 2)):
            rows = [row | {"label": row["label"] - 0.5 + 0.01 * i} for i, row in enumerate(tiny_rows(32, seed=seed))]
            write_jsonl(tmp_path / f"{split}.jsonl", rows)
    out = tmp_path / "out"
    for arguments in (("forecast", run, "-o", out), ("train", run, "-o", out), ("compare", out), ("report", out)):
        monkeypatch.setattr("sys.argv", ["foretune", *map(str, arguments)])
        with pytest.raises(SystemExit) as done:
            main()
        assert not done.value.code
    (row,) = json.loads((out / "comparison.json").read_text())["candidates"]
    assert row["predicted"]["eval_metric"] is not None and row["true"]["eval_metric"] is not None
    (entry,) = read_json(out / "forecast.json", "")["candidates"]
    result = read_json(out / "train" / "base" / "result.json", "")
    start, end = (result["curve"][i]["eval_loss"] for i in (0, -1))
    assert entry["predicted"]["curve"][0]["eval_loss"] == pytest.approx(start, rel=1e-3), "both start at the same place"
    assert abs(end - start) > 1e-4
    assert entry["simulated"]["eval_loss"] - start == pytest.approx(end - start, rel=0.25, abs=2e-4)
