"""A task: a model, its data and its loss, with the candidates for the fine-tune."""

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

# Tangents are gradients of the features that enter the head, along two directions of these features for every class but
# one. If that gives too many directions, fewer are chosen for every example.
MAX_DIRECTIONS = 16  # the most directions that are used for all examples
OWN_DIRECTIONS = 8  # the number of directions that are chosen for every example
Loss = Literal["cross_entropy", "mean_squared_error"]


@dataclass(repr=False)
class Task:
    """A model, its data and its loss, with the candidates for the fine-tune.

    Args:
        model: The model before training, without adapters and in eval mode.
        tokenizer: The tokenizer, which pads batches; None for inputs that all have the same shape, such as images.
        train: The training examples: rows with the inputs of the model and ``labels``, not padded.
        eval: The evaluation examples, in the same form.
        loss: ``cross_entropy`` for classes, ``mean_squared_error`` for one number (regression).
        labels: The names of the classes; None for regression.
        candidates: The ways in which the fine-tune could be run.
        model_init: A function that builds the model for a seed; None if all seeds start from ``model``.
        drawn: Names of the parameters that are drawn at random from the seed, such as those of a new head.
        max_length: The number of tokens at which texts were cut; None if they were not cut.
        name: Name of the task in titles.
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
            raise ValueError(f"loss is {self.loss!r}: write 'cross_entropy' or 'mean_squared_error'")
        for split, rows in (("train", self.train), ("eval", self.eval)):
            if len(rows) == 0:
                raise ValueError(f"{split} has no rows: give at least one example")
            if "labels" not in rows.column_names:
                raise ValueError(
                    f"{split} has only the columns {rows.column_names}: name the column of the targets 'labels'"
                )
        if self.loss == "mean_squared_error" and self.num_outputs != 1:
            raise ValueError(f"the model has {self.num_outputs} outputs: load it with num_labels=1 for regression")
        if self.loss == "cross_entropy" and self.num_outputs < 2:
            raise ValueError("the model has one output: load it with num_labels=2 or more for cross_entropy")

    @property
    def num_outputs(self) -> int:
        """Number of outputs: the number of classes, or 1 for regression."""
        return int(self.model.config.num_labels or 0)

    @property
    def metric_name(self) -> str:
        """Name of ``eval_metric``: ``accuracy``, or ``pearson`` (Pearson's correlation) for regression."""
        return "accuracy" if self.loss == "cross_entropy" else "pearson"

    @property
    def majority_metric(self) -> float | None:
        """The accuracy of always guessing the most frequent class of the evaluation examples; None for regression."""
        if self.loss != "cross_entropy":
            return None
        return float(np.bincount(self.eval["labels"]).max() / len(self.eval))

    @property
    def guess_loss(self) -> float:
        """The smallest mean loss of a model that gives all training examples the same outputs.

        It is the entropy of the training labels in nats, or their variance for regression.
        """
        labels = np.asarray(self.train["labels"])
        if self.loss != "cross_entropy":
            return float(labels.var())
        shares = np.unique(labels, return_counts=True)[1] / len(labels)
        return float(-(shares * np.log(shares)).sum())

    @property
    def collator(self) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
        """The function that makes a padded batch from rows."""
        return default_data_collator if self.tokenizer is None else DataCollatorWithPadding(self.tokenizer)

    def build_model(self, seed: int) -> PreTrainedModel:
        """Build the model from which training with a seed starts.

        Args:
            seed: The seed of a new head.

        Returns:
            A new model; changes to it do not change the task.
        """
        return copy.deepcopy(self.model) if self.model_init is None else self.model_init(seed)

    @property
    def device(self) -> torch.device:
        """The device for passes over the model: a GPU unless ``use_cpu`` is set, otherwise the device of the model."""
        use_cpu = bool(self.candidates) and self.candidates[0].training.get("use_cpu")
        if use_cpu or not torch.cuda.is_available():
            return self.model.device
        return torch.device("cuda", torch.cuda.current_device())

    @contextmanager
    def placed(self) -> Generator[None]:
        """Move the model to ``device`` inside a ``with`` block, and back afterwards."""
        before, device = self.model.device, self.device
        if before == device:  # quantised models cannot be moved, not even to their own device
            yield
            return
        self.model.to(device)  # type: ignore[arg-type]
        try:
            yield
        finally:
            self.model.to(before)  # type: ignore[arg-type]

    def compute_metrics(self, logits: ArrayLike | torch.Tensor, labels: ArrayLike | torch.Tensor) -> dict[str, float]:
        """Compute the metric: accuracy, or Pearson's correlation for regression, which is 0 if one side is constant.

        Simulated runs use a smoothed metric instead.

        Args:
            logits: Outputs of the model, one row for every example and one column for every output.
            labels: The label of every example.

        Returns:
            The metric as ``{"eval_metric": ...}``.

        Raises:
            ValueError: The number of columns of the logits is not the task's number of outputs.
        """
        f, y = _array(logits), _array(labels).reshape(-1)
        if self.loss == "cross_entropy" and f.shape[-1] != self.num_outputs:
            raise ValueError(
                f"logits have {f.shape[-1]} columns, but the task has {self.num_outputs} outputs: turn centred "
                "predictions, such as ridge.fx_eval, into outputs with kernel.outputs(ridge.fx_eval)"
            )
        if self.loss == "cross_entropy":
            return {"eval_metric": float((f.argmax(axis=-1) == y).mean())}
        f = f.reshape(-1) - f.mean()
        y = y - y.mean()
        norm = float(np.linalg.norm(f) * np.linalg.norm(y))
        return {"eval_metric": float(f @ y) / norm if norm > 0 else 0.0}

    def examples(self, count: int) -> list[int]:
        """Draw training examples without replacement, always the same ones for the same ``count``.

        Args:
            count: How many examples to draw.

        Returns:
            The numbers of the examples in ascending order.
        """
        order = torch.randperm(len(self.train), generator=torch.Generator().manual_seed(0))
        return order[:count].sort().values.tolist()

    def sampled(self, count: int) -> "Task":
        """The task with only ``count`` of its training examples, see :meth:`examples`."""
        return self if count >= len(self.train) else replace(self, train=self.train.select(self.examples(count)))

    def with_seed(self, seed: int) -> "Task":
        """The task with the model from which training with a seed starts."""
        return replace(self, model=self.build_model(seed).eval())

    @functools.cached_property
    def identity(self) -> str:
        """A hash of pretrained weights, config, tokenised rows and loss; runs with the same hash are of the same task.

        It is the same for all seeds. It ignores the candidates, the names of classes and the origin of the model.
        """
        return self.fingerprint(without=self.drawn)

    def fingerprint(self, without: Collection[str] = ()) -> str:
        """Compute a hash of weights, config, tokenised rows and loss, which is equal for equal tasks on any machine.

        It ignores the candidates, the names of classes and the origin of the model.

        Args:
            without: Names of parameters to ignore too.

        Returns:
            The hash as hexadecimal digits.
        """
        digest = hashlib.blake2b(digest_size=32)
        config = self.model.config.to_dict()
        for ignored in ("_name_or_path", "transformers_version", "id2label", "label2id", "architectures"):
            config.pop(ignored, None)
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
    """The number of feature directions along which tangents are computed.

    Args:
        span: Number of directions that matter to the outputs.

    Returns:
        All of them if they are few, otherwise the number of directions that are chosen for every example.
    """
    return span if span <= MAX_DIRECTIONS else OWN_DIRECTIONS


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()


def _hash_column(digest: Any, split: Dataset, column: str) -> None:
    """Hash the values of a column and the lengths of lists; Arrow chunks and index mappings do not change the hash."""
    digest.update(f"{column} {len(split)} {split.features[column]}".encode())
    values = split.with_format("arrow")[:][column].combine_chunks()
    while hasattr(values, "value_lengths"):
        digest.update(np.ascontiguousarray(values.value_lengths().to_numpy(zero_copy_only=False)))
        values = values.flatten()
    digest.update(np.ascontiguousarray(values.to_numpy(zero_copy_only=False)))
