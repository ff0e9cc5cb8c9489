"""Collecting tangents: results do not depend on batches, and stored tangents are used again."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import lora_config, tiny_task
from helpers import tiny_model
from peft import LoraConfig
from torch import Tensor, nn
from torch.testing import assert_close

from foretune.errors import InputError
from foretune.tangents import Tangents, adapted, collect, draw_adapters
from foretune.tangents.head import features_of, find_head

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def full_gradients(tangents: Tangents, example: int, *, simulated: bool = False) -> list[Tensor]:
    """The gradient of an example's features in the weight of every layer, ``sum_t (dh/dz_t) a_t'``.

    It does not depend on the basis or the order of rows. With ``simulated`` it is the sum over the rows that simulated
    runs read.
    """
    basis = tangents.basis[example if len(tangents.basis) > 1 else 0]
    # the sign and order of directions may differ between passes; mapped back to features they do not matter
    result: dict[str, Tensor] = {}
    for number, entry in enumerate(tangents.entries):
        if simulated and not entry.simulated:
            continue
        rows, _ = tangents.rows(torch.tensor([example]), entry.rows_per_example)
        inputs, gradients = tangents.inputs(number)[rows], tangents.gradients(number)[rows]
        part = torch.einsum("qd,qoi->doi", basis, torch.einsum("tqo,ti->qoi", gradients, inputs))
        result[entry.layer] = result[entry.layer] + part if entry.layer in result else part
    return list(result.values())


def assert_same(one: Tangents, two: Tangents, examples: list[int], rtol: float = 1e-10, atol: float = 1e-12) -> None:
    close: dict[str, Any] = {"rtol": rtol, "atol": atol}
    for place, example in enumerate(examples):
        for a, b in zip(full_gradients(one, place), full_gradients(two, example), strict=True):
            assert_close(a, b, **close)
    assert_close(one.features, two.features[examples], **close)
    assert_close(one.outputs, two.outputs[examples], **close)
    assert torch.equal(one.labels, two.labels[examples])


@pytest.mark.parametrize("kind", ["llama", "roberta"])
def test_tangents_do_not_depend_on_batches_order_and_padding(kind: str) -> None:
    # LLaMA computes norms and rotations in float32, also in a float64 model
    close = {"rtol": 1e-3, "atol": 1e-4} if kind == "llama" else EXACT
    expected = collect(tiny_task(kind), batch_size=3)
    for batch_size in (1, 32):
        assert_same(collect(tiny_task(kind), batch_size=batch_size), expected, list(range(9)), **close)
    order = [3, 0, 5, 1, 4, 2]
    assert_same(collect(tiny_task(kind, order=order)), expected, [*order, 6, 7, 8], **close)
    if kind == "llama":  # RoBERTa reads its first position, so it cannot be padded on the left
        assert_same(collect(tiny_task(kind, padding_side="left")), expected, list(range(9)), **close)


def test_texts_without_an_attention_mask_have_the_same_tangents() -> None:
    task, expected = tiny_task("bert"), collect(tiny_task("bert"))
    task.train, task.eval = (split.remove_columns("attention_mask") for split in (task.train, task.eval))
    assert_same(collect(task), expected, list(range(9)))


def test_stored_tangents_are_used_again(tmp_path: Path) -> None:
    expected = collect(tiny_task("bert"))
    first, second = (collect(tiny_task("bert"), directory=tmp_path) for _ in "12")
    assert not first.reused and second.reused
    assert_same(first, expected, list(range(9)))
    assert_same(second, expected, list(range(9)))
    (folder,) = tmp_path.iterdir()
    assert not collect(tiny_task("bert", order=[1, 0, 2, 3, 4, 5]), directory=tmp_path).reused  # other data
    assert not collect(tiny_task("bert"), ["query"], directory=tmp_path).reused  # other layers
    assert not collect(tiny_task("bert"), dtype=torch.float32, directory=tmp_path).reused
    assert len(list(tmp_path.iterdir())) == 4
    assert collect(tiny_task("bert"), directory=tmp_path).reused
    shutil.rmtree(folder)
    assert not collect(tiny_task("bert"), directory=tmp_path).reused


@pytest.mark.parametrize("damage", ["manifest.json", "summary.safetensors", "tangents.safetensors", "cut"])
def test_incomplete_tangents_are_collected_again(tmp_path: Path, damage: str) -> None:
    expected = collect(tiny_task("bert"), directory=tmp_path)
    (folder,) = tmp_path.iterdir()
    if damage == "cut":
        file = folder / "tangents.safetensors"
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content[: len(content) // 2])
    else:
        (folder / damage).unlink()
    again = collect(tiny_task("bert"), directory=tmp_path)
    assert not again.reused
    assert_same(again, expected, list(range(9)))
    assert collect(tiny_task("bert"), directory=tmp_path).reused


def test_the_pass_does_not_start_if_the_disk_has_too_little_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
    progress: list[int] = []
    with pytest.raises(InputError, match=r"tangents take .* and .* are free") as caught:
        collect(tiny_task("bert"), directory=tmp_path, progress=lambda done, _: progress.append(done))
    assert str(tmp_path) in caught.value.where and not progress and list(tmp_path.iterdir()) == []


def test_an_interrupted_pass_leaves_no_files(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect(tiny_task("bert"), directory=tmp_path, progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_a_model_with_frozen_parameters_has_the_same_tangents() -> None:
    task = tiny_task("roberta")
    task.model.requires_grad_(False)
    assert_same(collect(task), collect(tiny_task("roberta")), list(range(9)))


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "llama", "vit"])
def test_the_head_computes_the_models_outputs_from_the_features(kind: str) -> None:
    task = tiny_task(kind, dtype=torch.float32)
    tangents = collect(task)
    assert_close(tangents.head(tangents.features), tangents.outputs, rtol=1e-4, atol=1e-5)
    basis = tangents.basis.double()
    assert_close(basis @ basis.mT, torch.eye(basis.shape[1]).double().expand(len(basis), -1, -1), rtol=1e-5, atol=1e-5)


def test_an_adapted_layer_right_below_the_head() -> None:
    # the features are then the output of a watched layer
    task: Any = tiny_task("bert")

    class Plain(nn.Module):
        def forward(self, hidden: Tensor) -> Tensor:
            return hidden

    task.model.bert.pooler.activation = Plain()
    tangents = collect(task, ["pooler.dense"])
    assert_close(full_gradients(tangents, 0)[0].shape, torch.Size([16, 16, 16]))
    gradients = tangents.gradients(0)  # d(Q h)/dh = Q
    assert_close(gradients, tangents.basis.expand_as(gradients), **EXACT)


def test_features_of_computes_no_gradients_below_the_head() -> None:
    task: Any = tiny_task("bert")
    batch = task.collator([task.train[0], task.train[3]])
    head = find_head(task.model, ("classifier",), batch)
    features = features_of(task.model, head, batch)
    assert features.shape == (2, 16) and not features.requires_grad
    assert not task.model._forward_pre_hooks and not task.model.classifier._forward_pre_hooks


def test_drawing_adapters_leaves_the_model_unchanged() -> None:
    model: Any = tiny_model("bert")
    model.bert.pooler.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    state = torch.Generator().manual_seed(3).get_state()
    one, two = (draw_adapters(model, lora_config("bert"), state) for _ in "12")
    assert all(torch.equal(x.a, y.a) for x, y in zip(one, two, strict=True))
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    with pytest.raises(RuntimeError), adapted(model, LoraConfig(target_modules=["query"])):
        raise RuntimeError
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before


@pytest.mark.parametrize("where", ["everywhere", "in one text"])
def test_outputs_that_are_nan_are_an_input_error(where: str) -> None:
    task = tiny_task("bert", n=30, num_train=24)
    embedding = task.model.get_parameter("bert.embeddings.word_embeddings.weight")
    with torch.no_grad():
        embedding[slice(None) if where == "everywhere" else task.eval[5]["input_ids"][-1]] = torch.nan
    with pytest.raises(InputError, match=r"outputs \(float64\) are infinite or NaN"):
        collect(task)
