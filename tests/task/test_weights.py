"""Weights that are missing, have other sizes, or stay random; and heads that were already trained."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny_model, tiny_rows, tiny_tokenizer, write_jsonl, write_model, write_tiny_run
from safetensors.torch import load_file, save_file
from transformers import BertForMaskedLM, PreTrainedModel, T5EncoderModel

from foretune.errors import InputError
from foretune.task.config import ModelSpec
from foretune.task.loading import LoadedRun, load_run
from foretune.task.model import load_model

TEXT_KINDS = ("bert", "roberta", "distilbert", "llama", "gpt2", "t5", "bart", "deberta-v2", "deberta", "xlnet")
POOLING = ("mean", "model")


def spec(folder: Path, pooling: Any = "model") -> ModelSpec:
    return ModelSpec(path=str(folder), pooling=pooling)


@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("whole", [True, False], ids=["with head", "base"])
@pytest.mark.parametrize("kind", TEXT_KINDS)
def test_whole_models_are_accepted(kind: str, whole: bool, pooling: str, tmp_path: Path) -> None:
    model: Any = tiny_model(kind, dtype=torch.float32)
    (model if whole else model.base_model).save_pretrained(tmp_path)
    loaded = load_model(spec(tmp_path, pooling), 3)
    head = [name for name in loaded.drawn if not name.startswith(f"{loaded.model.base_model_prefix}.")]
    assert bool(head) is (pooling == "mean" or not whole) and set(head) == set(loaded.drawn)
    saved = model.state_dict()
    for name, value in loaded.model.state_dict().items():
        if pooling == "model" and name not in loaded.drawn:
            assert torch.equal(value, saved[name])


def test_an_encoder_without_its_decoder_can_be_pooled(tmp_path: Path) -> None:
    config: Any = tiny_model("t5").config
    T5EncoderModel(config).save_pretrained(tmp_path)
    load_model(spec(tmp_path, "mean"), 2)
    with pytest.raises(InputError, match=r"28 of the .*not in the weights file: transformer\.decoder.* and 24 more"):
        load_model(spec(tmp_path), 2)


def remove_tensors(folder: Path, *endings: str) -> None:
    """Remove the tensors whose names have one of the endings from a weights file."""
    weights = load_file(folder / "model.safetensors")
    remaining = {name: value for name, value in weights.items() if not name.endswith(endings)}
    assert len(remaining) < len(weights)
    save_file(remaining, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("pooling", POOLING)
@pytest.mark.parametrize("kind", ["bert", "llama", "t5"])
def test_missing_tensors_are_named(kind: str, pooling: str, tmp_path: Path) -> None:
    ending = {
        "bert": "layer.1.output.dense.weight",
        "llama": "layers.1.mlp.up_proj.weight",
        "t5": "1.layer.0.SelfAttention.q.weight",
    }
    write_model(tmp_path, kind)
    remove_tensors(tmp_path, f"encoder.block.{ending[kind]}" if kind == "t5" else ending[kind])
    with pytest.raises(InputError, match=rf"1 of the \d+ tensors .*not in the weights file: \S*{ending[kind]}\."):
        load_model(spec(tmp_path, pooling), 2)


def test_a_shard_without_one_of_its_tensors_is_reported(tmp_path: Path) -> None:
    model: Any = tiny_model("bert", dtype=torch.float32).base_model
    model.save_pretrained(tmp_path, max_shard_size="4KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    load_model(spec(tmp_path), 2)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    removed = next(name for name, shard in index["weight_map"].items() if "layer.1" in name and "weight" in name)
    shard = tmp_path / index["weight_map"].pop(removed)
    save_file({name: x for name, x in load_file(shard).items() if name != removed}, shard, metadata={"format": "pt"})
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="not in the weights file"):
        load_model(spec(tmp_path), 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"num_labels": 3},
            r"head .*another number of labels.*classifier\.weight \(3, 16\) instead of \(2, 16\).*base model",
        ),
        (
            {"intermediate_size": 20},
            r"other sizes than config\.json: bert\S*intermediate\S* \(24.*instead of \(20.*together",
        ),
    ],
)
def test_other_sizes_are_reported_for_the_head_and_for_the_rest(
    change: dict[str, int], message: str, tmp_path: Path
) -> None:
    model: Any = tiny_model("bert", dtype=torch.float32, num_labels=change.get("num_labels", 2))
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {k: v for k, v in change.items() if k != "num_labels"}))
    with pytest.raises(InputError, match=message):
        load_model(spec(tmp_path), 2)
    if "num_labels" in change:
        load_model(spec(tmp_path, "mean"), 2)


def run_with(folder: Path, network: PreTrainedModel, rows: Any = None, **overrides: Any) -> LoadedRun:
    path = write_tiny_run(folder, **overrides)
    shutil.rmtree(folder / "model")
    network.float().save_pretrained(folder / "model")
    tiny_tokenizer().save_pretrained(folder / "model")
    for name in ("train.jsonl", "eval.jsonl"):
        if rows is not None:
            write_jsonl(folder / name, [row | {"label": rows[row["label"]]} for row in tiny_rows(12, seed=1)])
    return load_run(path)


def pretrained(kind: str) -> PreTrainedModel:
    """A model as pretraining leaves it; BERT has no pooler then."""
    model: Any = tiny_model(kind)
    torch.manual_seed(0)
    base = BertForMaskedLM(model.config) if kind == "bert" else model.base_model
    assert isinstance(base, PreTrainedModel)
    return base


@pytest.mark.parametrize(
    ("kind", "target", "parts", "heads"),
    [
        ("bert", "query", ["pooler"], ["classifier"]),
        ("deberta-v2", "value_proj", ["pooler"], ["classifier"]),
        ("t5", "q", ["classification_head"], []),
        ("xlnet", "layer_1", ["sequence_summary", "logits_proj"], []),
    ],
)
def test_a_part_that_stays_random_gives_a_warning(
    kind: str, target: str, parts: list[str], heads: list[str], tmp_path: Path
) -> None:
    adapters: dict[str, Any] = {"target_modules": [target]}
    save = [*parts, *heads]
    (warning, *rest) = run_with(tmp_path / "a", pretrained(kind), peft=adapters).warnings
    assert warning.startswith(" and ".join(parts)) and not any("weights file" in other for other in rest)
    assert "random" in warning and f"modules_to_save: [{', '.join(save)}]" in warning and "pooling: mean" in warning
    trained = run_with(tmp_path / "b", pretrained(kind), peft=adapters | {"modules_to_save": save})
    pooled = run_with(tmp_path / "c", pretrained(kind), peft=adapters, model={"pooling": "mean"})
    assert not any("random" in sentence for run in (trained, pooled) for sentence in run.warnings)


@pytest.mark.parametrize(("kind", "target"), [("roberta", "query"), ("distilbert", "q_lin"), ("llama", "q_proj")])
def test_whole_models_give_no_warning(kind: str, target: str, tmp_path: Path) -> None:
    run = run_with(tmp_path, pretrained(kind), peft={"target_modules": [target]})
    assert not any("random" in sentence or "head" in sentence for sentence in run.warnings)


@pytest.mark.parametrize("pooling", POOLING)
def test_unused_layers_of_the_file_give_a_warning(pooling: str, tmp_path: Path) -> None:
    write_tiny_run(tmp_path, model={"pooling": pooling})
    assert not any("left out" in sentence for sentence in load_run(tmp_path / "run.yaml").warnings)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    (warning,) = (sentence for sentence in load_run(tmp_path / "run.yaml").warnings if "left out" in sentence)
    assert warning.startswith("16 tensors") and "layer.1." in warning and "num_hidden_layers" in warning


def test_the_warning_names_the_candidates_that_do_not_train_the_part(tmp_path: Path) -> None:
    save = {"name": "saves", "peft": {"modules_to_save": ["pooler", "classifier"]}}
    run = run_with(tmp_path, pretrained("bert"), candidates=[save, {"name": "leaves"}])
    assert run.warnings[0].startswith("leaves: pooler")


@pytest.mark.parametrize("pooling", POOLING)
def test_randomly_drawn_weights_do_not_change_the_identity_of_the_task(pooling: str, tmp_path: Path) -> None:
    runs = [
        run_with(tmp_path / str(seed), pretrained("bert"), model={"pooling": pooling}, training={"seed": seed})
        for seed in (1, 2)
    ]
    assert runs[0].task.identity == runs[1].task.identity
    assert runs[0].task.fingerprint() != runs[1].task.fingerprint()


def trained_head(names: dict[int, str] | None) -> PreTrainedModel:
    model = tiny_model("bert", num_labels=2)
    if names is not None:
        model.config.id2label, model.config.label2id = names, {name: i for i, name in names.items()}
    return model


@pytest.mark.parametrize(
    ("head", "labels", "order"),
    [
        (["positive", "negative"], ["negative", "positive"], ("positive", "negative")),
        (["negative", "positive"], ["negative", "positive"], ("negative", "positive")),
        (["POSITIVE", "Negative"], ["negative", "positive"], ("positive", "negative")),
        (["positive", "negative"], [0, 1], ("0", "1")),  # numbers are those of the head's outputs
        (None, [0, 1], ("0", "1")),
    ],
)
def test_classes_have_the_order_of_a_trained_head(
    head: list[str] | None, labels: list[Any], order: tuple[str, ...], tmp_path: Path
) -> None:
    run = run_with(tmp_path, trained_head(None if head is None else dict(enumerate(head))), rows=labels)
    assert run.task.labels == order and run.task.model.config.id2label == dict(enumerate(order))
    expected = [order.index(str(labels[row["label"]])) for row in tiny_rows(12, seed=1)]
    assert run.task.train["labels"] == expected and run.task.eval["labels"] == expected
    assert run.data.train_stats.class_counts == {name: 6 for name in order}
    assert not any("trained head" in sentence for sentence in run.warnings)


@pytest.mark.parametrize("head", [["spam", "ham"], None])
def test_a_trained_head_with_other_labels_gives_a_warning(head: list[str] | None, tmp_path: Path) -> None:
    names = None if head is None else dict(enumerate(head))
    run = run_with(tmp_path, trained_head(names), rows=["negative", "positive"])
    assert run.task.labels == ("negative", "positive")
    (warning,) = (sentence for sentence in run.warnings if "trained head" in sentence)
    assert "0 = negative, 1 = positive" in warning and ("spam, ham" if head else "no names") in warning


def test_a_new_head_ignores_the_order_of_other_labels(tmp_path: Path) -> None:
    base: Any = pretrained("bert")
    base.config.id2label = {0: "spam", 1: "ham"}
    run = run_with(tmp_path, base, rows=["negative", "positive"])
    assert run.task.labels == ("negative", "positive")
    assert not any("trained head" in sentence for sentence in run.warnings)
