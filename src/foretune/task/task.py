"""A task: a model, its data and its loss, with the candidates to be judged on it."""

import copy
import functools
import hashlib
import json
from collections.abc import Callable, Collection, Generator
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import ArrayLike
from transformers import DataCollatorWithPadding, PreTrainedModel, default_data_collator

from foretune.brief import brief
from foretune.task.candidate import Candidate

MAX_DIRECTIONS = 16  # along which tangents are taken: two for each class but one
OWN_DIRECTIONS = 8  # of each example's own, where these would be more
Loss = Literal["cross_entropy", "mean_squared_error"]


@dataclass(repr=False)
class Task:
    """Everything a forecast, a fine-tune or a kernel needs to know.

    Args:
        model: The model without adapters, in eval mode, its head as it is before training.
        tokenizer: Pads batches; None for inputs that are all of one shape, such as images.
        train: Rows with the model's inputs and ``labels``, not padded.
        eval: Likewise.
        loss: ``cross_entropy`` (classes) or ``mean_squared_error`` (one number).
        labels: Class names, None for regression.
        candidates: The ways it could be run.
        model_init: Builds the model for a seed, as a script would; None: every seed starts from ``model``.
        drawn: Names of the model's parameters that are drawn from the seed, such as those of a new head.
        max_length: Tokens at which texts were cut, when they were.
        name: For titles.
    """

    model: PreTrainedModel
    tokenizer: Any
    train: Dataset
    eval: Dataset
    loss: Loss = "cross_entropy"
    _: KW_ONLY
    labels: tuple[str, ...] | None = None
    candidates: tuple[Candidate, ...] = ()
    model_init: Callable[[int], PreTrainedModel] | None = None
    drawn: tuple[str, ...] = ()
    max_length: int | None = None
    name: str = "task"
    __repr__ = brief

    def __post_init__(self) -> None:
        if self.loss not in {"cross_entropy", "mean_squared_error"}:
            raise ValueError(f"loss is {self.loss!r}, write 'cross_entropy' or 'mean_squared_error'")
        for split, rows in (("train", self.train), ("eval", self.eval)):
            if len(rows) == 0:
                raise ValueError(f"{split} has no rows, give at least one example")
            if "labels" not in rows.column_names:
                raise ValueError(f"{split} has the columns {rows.column_names}, name the targets 'labels'")
        if self.loss == "mean_squared_error" and self.num_outputs != 1:
            raise ValueError(f"the model has {self.num_outputs} outputs, load it with num_labels=1 for regression")
        if self.loss == "cross_entropy" and self.num_outputs < 2:
            raise ValueError("the model has one output, load it with num_labels=2 or more for cross_entropy")

    @property
    def num_outputs(self) -> int:
        """Outputs c: the number of classes, or 1."""
        return int(self.model.config.num_labels or 0)

    @property
    def metric_name(self) -> str:
        """What ``eval_metric`` is: ``accuracy``, or ``pearson`` (correlation) for regression."""
        return "accuracy" if self.loss == "cross_entropy" else "pearson"

    @property
    def majority_metric(self) -> float | None:
        """Metric of guessing the class that most evaluation examples have; None for regression."""
        if self.loss != "cross_entropy":
            return None
        return float(np.bincount(self.eval["labels"]).max() / len(self.eval))

    @property
    def guess_loss(self) -> float:
        """Least mean loss of the same outputs for all training examples: entropy, or variance, of their labels."""
        labels = np.asarray(self.train["labels"])
        if self.loss != "cross_entropy":
            return float(labels.var())
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """Makes a padded batch of rows."""
        return default_data_collator if self.tokenizer is None else DataCollatorWithPadding(self.tokenizer)

    def build_model(self, seed: int) -> PreTrainedModel:
        """A fresh model whose new head belongs to ``seed``; changing it leaves the task as it was."""
        return copy.deepcopy(self.model) if self.model_init is None else self.model_init(seed)

    @property
    def device(self) -> torch.device:
        """Where passes over the model are made: a GPU, unless its training asks for none; else where the model is."""
        spared = bool(self.candidates) and self.candidates[0].training.get("use_cpu")
        if spared or not torch.cuda.is_available():
            return self.model.device
        return torch.device("cuda", torch.cuda.current_device())

    @contextmanager
    def placed(self) -> Generator[None]:
        """Inside the block the model is on ``device``, afterwards where it was."""
        before, device = self.model.device, self.device
        if before == device:  # quantised models refuse to be moved, even there
            yield
            return
        self.model.to(device)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.model.to(before)  # type: ignore[arg-type]

    def compute_metrics(self, logits: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor) -> dict[str, float]:
        """``{"eval_metric": ...}`` of logits (n, c) against labels (n,); simulated runs smooth it.

        The correlation of a constant is counted as 0.

        Raises:
            ValueError: Logits have another number of columns than the task has outputs.
        """
        f, y = _array(logits), _array(labels).reshape(-1)
        if self.loss == "cross_entropy" and f.shape[-1] != self.num_outputs:
            raise ValueError(
                f"logits have {f.shape[-1]} columns and the task has {self.num_outputs} outputs: centred predictions, "
                "such as ridge.fx_eval, are made outputs by kernel.outputs(ridge.fx_eval)"
            )
        if self.loss == "cross_entropy":
            return {"eval_metric": float((f.argmax(axis=-1) == y).mean())}
        f = f.reshape(-1) - f.mean()
        y = y - y.mean()
        norm = float(np.linalg.norm(f) * np.linalg.norm(y))
        return {"eval_metric": float(f @ y) / norm if norm > 0 else 0.0}

    def examples(self, count: int) -> list[int]:
        """Numbers of so many training examples, drawn without replacement, always the same ones, in their order."""
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return order[:count].sort().values.tolist()

    def sampled(self, count: int) -> "Task":
        """The same task with only so many of its training examples."""
        return self if count >= len(self.train) else replace(self, train=self.train.select(self.examples(count)))

    def with_seed(self, seed: int) -> "Task":
        """The same task from the model that a seed starts from."""
        return replace(self, model=self.build_model(seed).eval())

    @functools.cached_property
    def identity(self) -> str:
        """A hash of pretrained weights, config, tokenised rows and loss: what makes two runs runs of the same task.

        It is the same for all seeds. Candidates, the names of classes and where the model was loaded from do not enter.
        """
        return self.fingerprint(without=self.drawn)

    def fingerprint(self, without: Collection[str] = ()) -> str:
        """A hash of weights, config, tokenised rows and loss: equal for equal tasks, on any machine.

        Candidates, the names of classes and where the model was loaded from do not enter.

        Args:
            without: Names of parameters that do not enter either.
        """
        digest = hashlib.blake2b(digest_size=32)
        config = self.model.config.to_dict()
        for volatile in ("_name_or_path", "transformers_version", "id2label", "label2id", "architectures"):
            config.pop(volatile, None)
        attention = self.model.config._attn_implementation
        header = [type(self.model).__name__, config, attention, self.loss, self.num_outputs]
        digest.update(json.dumps(header, sort_keys=True, default=str).encode())
        for name, tensor in self.model.state_dict().items():
            if name in without:
                continue
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(_bytes(tensor))
        for split in (self.train, self.eval):
            for column in sorted(split.column_names):
                _hash_column(digest, split, column)
        return digest.hexdigest()


def _array(values: ArrayLike | torch.Tensor) -> np.ndarray:
    return np.asarray(values.detach().double().cpu() if isinstance(values, torch.Tensor) else values, dtype=np.float64)


def directions_taken(span: int) -> int:
    """Along how many directions tangents are taken where so many matter to the outputs."""
    return span if span <= MAX_DIRECTIONS else OWN_DIRECTIONS


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _hash_column(digest: Any, split: Dataset, column: str) -> None:
    """Hash a column's values and, for lists, where one row ends; chunks and index mappings do not show."""
    digest.update(f"{column} {len(split)} {split.features[column]}".encode())
    values = split.with_format("arrow")[:][column].combine_chunks()
    while hasattr(values, "value_lengths"):
        digest.update(np.ascontiguousarray(values.value_lengths().to_numpy(zero_copy_only=False)))
        values = values.flatten()
    digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
