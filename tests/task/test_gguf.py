"""Quantised models in GGUF files are forecast and trained as dense models."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from helpers import write_tiny_run

from foretune.forecast.forecast import forecast
from foretune.tangents import collect
from foretune.task import load_task
from foretune.task.config import GgufFile
from foretune.train import fine_tune

WIDTH, INNER, LAYERS = 32, 64, 2


def write_gguf(path: Path) -> None:
    """Write a tiny Llama model whose tokens are letters and whose matrices are quantised to eight bits (Q8_0)."""
    generator = np.random.default_rng(0)
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    vocabulary = ["<unk>", "<s>", "</s>", "Ġ", *letters, "oo"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_block_count(LAYERS)
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(2)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // 2)
    writer.add_vocab_size(len(vocabulary))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(vocabulary)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(vocabulary) - 3))
    writer.add_token_merges(["o o"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (generator.standard_normal((rows, columns)) * 0.2).astype(np.float32)
        kind = gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd.weight", len(vocabulary), WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(LAYERS):
        for name, rows in (("attn_q", WIDTH), ("attn_k", WIDTH // 2), ("attn_v", WIDTH // 2), ("attn_output", WIDTH)):
            matrix(f"blk.{i}.{name}.weight", rows, WIDTH)
        for name, shape in (("gate", (INNER, WIDTH)), ("up", (INNER, WIDTH)), ("down", (WIDTH, INNER))):
            matrix(f"blk.{i}.ffn_{name}.weight", *shape)
        for name in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_the_text_of_a_gguf_file_is_its_path() -> None:
    assert f"{GgufFile(gguf='some/model.gguf')}" == "some/model.gguf"


def test_a_gguf_file_is_forecast_and_trained(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf")
    model = {"path": {"gguf": "tiny.gguf"}, "pooling": "model", "task": "classification"}
    small_steps = {"num_train_epochs": 1, "optim": "sgd", "learning_rate": 1e-2, "lr_scheduler_type": "constant"}
    run = write_tiny_run(tmp_path, model=model, peft={"target_modules": ["q_proj", "v_proj"]}, training=small_steps)
    task = load_task(run)
    assert type(task.model.get_submodule("model.layers.0.self_attn.q_proj")) is torch.nn.Linear
    (expected,) = forecast(collect(task, ["q_proj", "v_proj"]), task, task.candidates)
    result, _ = fine_tune(task, task.candidates[0], tmp_path)
    before, after = (result["curve"][i]["eval_loss"] for i in (0, -1))
    assert expected.simulated[0]["eval_loss"] == pytest.approx(before, abs=1e-3)
    assert expected.simulated[-1]["eval_loss"] - before == pytest.approx(after - before, rel=0.2, abs=1e-3)
