"""Jacobians and kernels of single layers."""

from typing import Any

import pytest
import torch
from cases import lora_config, lora_model, twice_model
from helpers import tiny_batch
from peft import PeftModel
from torch.testing import assert_close

from foretune.kernel import CallRows, Factors, jacobian_a, jacobian_b, layer_kernels
from foretune.tangents import layer_gradients, lora_layers, read_adapters
from foretune.tangents.adapters import base_name
from foretune.tangents.head import outputs_of
from foretune.tangents.reference import jacobian

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def build(kind: str, trained: bool) -> tuple[PeftModel, dict[str, torch.Tensor]]:
    if kind == "twice":
        return twice_model(trained), tiny_batch("roberta")
    return lora_model(kind, trained), tiny_batch(kind)


@pytest.mark.parametrize("trained", [False, True], ids=["B=0", "B≠0"])
@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama", "twice"])  # test_testing_ntk has all kinds
def test_jacobian_blocks_equal_the_reference(kind: str, trained: bool) -> None:
    model, batch = build(kind, trained)
    expected = jacobian(model, batch)
    mask = batch["attention_mask"].bool() if "attention_mask" in batch else None
    layers = lora_layers(model)
    _, calls, inputs, gradients = layer_gradients(model, layers, lambda: outputs_of(model, batch), mask)
    names = {base_name(name): name for name in layers}
    factors = Factors.by_layer(read_adapters(model))
    assert set(names) == set(factors)
    for layer, pair in factors.items():
        rows = [
            CallRows(inputs[c.position], gradients[c.position], c.row_counts, torch.arange(4))
            for c in calls
            if base_name(c.layer) == layer
        ]
        assert len(rows) == (2 if layer == "shared" else 1)
        j_b = jacobian_b(rows, pair, dtype=torch.float64)
        j_a = jacobian_a(rows, pair, dtype=torch.float64)
        assert_close(j_b, expected.pop(f"{names[layer]}.lora_B.default.weight"), **EXACT)
        assert_close(j_a, expected.pop(f"{names[layer]}.lora_A.default.weight"), **EXACT)
        assert trained or not j_a.any()
    assert not expected  # every LoRA parameter was covered


@pytest.mark.parametrize("by_rank", [False, True])
def test_kernels_do_not_depend_on_the_chunks(by_rank: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = torch.tensor([2, 2, 2, 5, 5, 3])
    rows = int(counts.sum())

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    order = torch.randperm(6)
    calls = [CallRows(draw(rows, 4), draw(rows, 3, 5), counts, order, draw(6, 2, 3)) for _ in range(2)]
    factors = Factors(draw(2, 4), draw(5, 2))
    columns = torch.tensor([0, 1, 2, 3])
    options: dict[str, Any] = {"dtype": torch.float64, "by_rank": by_rank}
    whole = dict(layer_kernels(calls, factors, columns, **options))
    monkeypatch.setattr("foretune.kernel.blocks.WORK_BYTES", 100)
    chunked = dict(layer_kernels(calls, factors, columns, chunk_bytes=1, **options))
    assert list(whole) == (["B.0", "B.1", "A.0", "A.1"] if by_rank else ["B", "A"])
    for name, block in whole.items():
        assert block.shape == (12, 8)
        assert_close(chunked[name], block, **EXACT)


def test_several_adapters_on_a_layer_are_stacked() -> None:
    model: Any = lora_model("bert", True)
    model.add_adapter("second", lora_config("bert", modules_to_save=None))
    model.base_model.set_adapter(["default", "second"])
    factors = Factors.by_layer(read_adapters(model))
    assert {pair.rows.shape[0] for pair in factors.values()} == {4}
