from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from helpers import tiny_model, tiny_rows, write_jsonl, write_tiny_run
from torch import nn

from foretune.task import MeanPooledClassifier, Task, load_task


def image_task(**changes: Any) -> Task:
    rows = Dataset.from_dict({"pixel_values": torch.randn(4, 3, 8, 8).tolist(), "labels": [0, 1, 2, 0]})
    return Task(**({"model": tiny_model("vit"), "tokenizer": None, "train": rows, "eval": rows} | changes))


def head(model: nn.Module) -> nn.Linear:
    module = model.get_submodule("classifier")
    assert isinstance(module, nn.Linear)
    return module


def test_a_run_file_is_loaded_into_a_task(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path / "reviews"))
    assert (len(task.train), len(task.eval), task.num_outputs) == (48, 32, 2)
    assert (task.loss, task.metric_name, task.labels, task.name) == (
        "cross_entropy",
        "accuracy",
        ("0", "1"),
        "reviews",
    )
    batch = task.collator([task.train[i] for i in range(3)])
    assert task.model(**batch).logits.shape == (3, 2)
    seeded = task.build_model(0)
    assert all(torch.equal(a, b) for a, b in zip(seeded.parameters(), task.model.parameters(), strict=True))
    assert not torch.equal(head(task.build_model(1)).weight, head(task.model).weight)


def test_regression_with_mean_pooling(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path, model={"task": "regression", "pooling": "mean"})
    for split in ("train", "eval"):
        write_jsonl(tmp_path / f"{split}.jsonl", [row | {"label": row["label"] - 0.5} for row in tiny_rows(8, seed=0)])
    task = load_task(path)
    assert isinstance(task.model, MeanPooledClassifier)
    assert (task.loss, task.metric_name, task.num_outputs, task.labels) == (
        "mean_squared_error",
        "pearson",
        1,
        None,
    )
    batch = task.collator([task.train[i] for i in range(3)])
    assert batch["labels"].dtype == torch.float32 and torch.isfinite(task.model(**batch).loss)


def test_candidates_are_selected_by_name(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path, candidates=[{"name": "a"}, {"name": "b", "peft": {"r": 2}}])
    assert [candidate.name for candidate in load_task(path, ["b"]).candidates] == ["b"]


def test_metrics(tmp_path: Path) -> None:
    logits, labels = np.array([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), np.array([0, 1, 1])
    task = load_task(write_tiny_run(tmp_path))
    assert task.compute_metrics(logits, labels) == {"eval_metric": pytest.approx(2 / 3)}
    assert task.compute_metrics(torch.tensor(logits), torch.tensor(labels))["eval_metric"] == pytest.approx(2 / 3)
    task = image_task(model=tiny_model("vit", num_labels=1), loss="mean_squared_error")
    x, y = np.array([1.0, 2.0, 4.0, 3.0]), np.array([0.0, 1.0, 5.0, 2.0])
    expected = pytest.approx(float(np.corrcoef(x, y)[0, 1]))
    assert task.compute_metrics(x[:, None], y)["eval_metric"] == expected
    assert task.compute_metrics(np.ones((4, 1)), y)["eval_metric"] == pytest.approx(0)


def test_the_fingerprint_changes_with_weights_and_rows(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path)
    task = load_task(path)
    first = task.fingerprint()
    assert first == task.fingerprint() == load_task(path).fingerprint()
    shuffled = Task(task.model, task.tokenizer, task.train.select(range(47, -1, -1)), task.eval, labels=task.labels)
    restored = Task(task.model, task.tokenizer, shuffled.train.select(range(47, -1, -1)), task.eval)
    assert shuffled.fingerprint() != first == restored.fingerprint()
    with torch.no_grad():
        head(task.model).bias[0] += 1e-6
    assert task.fingerprint() != first
    images = image_task()
    assert images.fingerprint() == image_task(train=images.train, eval=images.eval).fingerprint()
    assert image_task(model=tiny_model("vit").bfloat16()).fingerprint() != images.fingerprint()


def test_build_model_copies_the_model_if_there_is_no_model_init() -> None:
    task = image_task()
    copied = task.build_model(3)
    with torch.no_grad():
        next(copied.parameters()).zero_()
    assert next(task.model.parameters()).abs().max() > 0


def test_passes_run_on_a_gpu_unless_use_cpu_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, cpu_task = (
        load_task(write_tiny_run(tmp_path, training={"use_cpu": use_cpu, "num_train_epochs": 1}))
        for use_cpu in (False, True)
    )
    assert task.device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert task.device == torch.device("cuda", 1) and cpu_task.device == torch.device("cpu")


def test_placed_moves_the_model_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = load_task(write_tiny_run(tmp_path))
    before = task.model.device
    monkeypatch.setattr(Task, "device", torch.device("meta"))
    moves: list[str] = []
    monkeypatch.setattr(task.model, "to", lambda device: moves.append(str(device)))
    with pytest.raises(ZeroDivisionError), task.placed():
        assert moves == ["meta"]
        _ = 1 // 0
    assert moves == ["meta", str(before)]
    monkeypatch.setattr(Task, "device", before)
    with task.placed():
        pass
    assert len(moves) == 2


def test_wrong_arguments_of_a_task_are_explained() -> None:
    with pytest.raises(ValueError, match="num_labels=1"):
        image_task(loss="mean_squared_error")
    with pytest.raises(ValueError, match="no rows"):
        image_task(train=Dataset.from_dict({"labels": []}))
    with pytest.raises(ValueError, match="name the column of the targets 'labels'"):
        image_task(eval=Dataset.from_dict({"label": [1]}))
