"""Reads both splits, tokenises them, and counts what users want to know about them."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from foretune.errors import InputError, shortened
from foretune.task.config import DataSpec
from foretune.task.labels import class_indices, class_names, column, targets
from foretune.task.problems import shown
from foretune.task.tables import Table, read_table


@dataclass(frozen=True)
class SplitStats:
    """Counts of a split; tokens are counted after truncation.

    Args:
        rows: Number of examples.
        class_counts: Number of examples per class; None for regression.
        truncated: The share of examples that were cut at ``max_length`` tokens.
        tokens_mean: Mean number of tokens per example.
        tokens_max: Number of tokens of the longest example.
        tokens_total: Number of tokens of all examples.
        repeated: Number of examples with the same text as an earlier example of the split.
    """

    rows: int
    class_counts: dict[str, int] | None
    truncated: float
    tokens_mean: float
    tokens_max: int
    tokens_total: int
    repeated: int


@dataclass(frozen=True)
class EncodedData:
    """Both splits after tokenisation.

    Attributes:
        train: The training examples.
        eval: The evaluation examples.
        labels: The names of the classes; None for regression.
        train_stats: Counts of the training split.
        eval_stats: Counts of the evaluation split.
        overlap: Number of evaluation examples whose text is also a training text.
    """

    train: Dataset
    eval: Dataset
    labels: tuple[str, ...] | None
    train_stats: SplitStats
    eval_stats: SplitStats
    overlap: int


@dataclass(frozen=True)
class RawData:
    """Both splits, read and checked but not tokenised.

    Attributes:
        train_texts: The training texts, one list for every text column.
        eval_texts: The evaluation texts, one list for every text column.
        train_labels: The training labels: indices into ``labels``, or numbers for regression.
        eval_labels: The evaluation labels: indices into ``labels``, or numbers for regression.
        labels: The names of the classes; None for regression.
        train_source: Name of the training file or data set in messages.
        eval_source: Name of the evaluation file or data set in messages.
    """

    train_texts: list[list[str]]
    eval_texts: list[list[str]]
    train_labels: list[Any]
    eval_labels: list[Any]
    labels: tuple[str, ...] | None
    train_source: str
    eval_source: str


def read_data(spec: DataSpec, regression: bool, source: str = "run.yaml") -> RawData:
    """Read and check both splits.

    Args:
        spec: The data section of the run file.
        regression: Whether the labels are numbers to predict instead of classes.
        source: Name of the run file in messages.

    Returns:
        Both splits, not tokenised.

    Raises:
        InputError: A file, column, text or label is missing or wrong; the message names the row.
    """
    whole = read_table(spec.train, f"{source}: data.train")
    train = whole.head(spec.train_samples)
    evaluation = read_table(spec.eval, f"{source}: data.eval").head(spec.eval_samples)
    if len(train) < 2:
        raise InputError(f"{source}: data.train", f"{train.source} has {len(train)} row", "give at least two examples")
    where = f"{source}: data.label"
    if len(train) < len(whole):
        _check_first_rows(train, whole, spec.label, source)
    names = None if regression else class_names(train, spec.label, where)

    def to_labels(table: Table) -> list[Any]:
        if names is None:
            return targets(table, spec.label, where)
        return class_indices(table, spec.label, names, where, cut=len(train) < len(whole))

    train_labels = to_labels(train)
    if names is None and min(train_labels) == max(train_labels):
        problem = f"all {len(train)} training targets are {train_labels[0]}, so that there is nothing to learn"
        raise InputError(where, problem, "give training rows with targets that differ")
    return RawData(
        train_texts=[_texts(train, name, f"{source}: data.text") for name in spec.text_columns],
        eval_texts=[_texts(evaluation, name, f"{source}: data.text") for name in spec.text_columns],
        train_labels=train_labels,
        eval_labels=to_labels(evaluation),
        labels=names,
        train_source=train.source,
        eval_source=evaluation.source,
    )


def encode_data(
    raw: RawData, tokenizer: PreTrainedTokenizerBase, max_length: int, source: str = "run.yaml"
) -> EncodedData:
    """Tokenise both splits.

    The columns are ``input_ids``, ``attention_mask``, ``labels`` and, if the tokenizer gives them, ``token_type_ids``.
    Texts are cut at ``max_length`` tokens and not padded. A text without tokens raises an ``InputError``.

    Args:
        raw: Both splits.
        tokenizer: The model's tokenizer.
        max_length: The largest number of tokens of an example.
        source: Name of the run file in messages.

    Returns:
        The tokenised splits with their counts.
    """
    train, train_cut = _tokenise(raw.train_texts, raw.train_labels, tokenizer, max_length, raw.train_source, source)
    evaluation, eval_cut = _tokenise(raw.eval_texts, raw.eval_labels, tokenizer, max_length, raw.eval_source, source)
    train_digests = {_digest(text) for text in zip(*raw.train_texts, strict=True)}
    return EncodedData(
        train=train,
        eval=evaluation,
        labels=raw.labels,
        train_stats=_stats(train, raw.train_texts, raw.labels, train_cut),
        eval_stats=_stats(evaluation, raw.eval_texts, raw.labels, eval_cut),
        overlap=sum(_digest(text) in train_digests for text in zip(*raw.eval_texts, strict=True)),
    )


def _check_first_rows(train: Table, whole: Table, label: str, source: str) -> None:
    """Check that the first rows of a file have several labels if the whole file has.

    Raises:
        InputError: The first rows have only one label, and the file has several.
    """
    first_labels, all_labels = (
        {repr(value) for value in column(table, label, f"{source}: data.label")} for table in (train, whole)
    )
    if len(first_labels) == 1 < len(all_labels):
        problem = (
            f"the first {len(train)} rows of {whole.source} all have the label {shortened(first_labels.pop(), 60)}, "
            f"but its {len(whole)} rows have {len(all_labels)} labels"
        )
        fix = "shuffle the file, or raise data.train_samples"
        raise InputError(f"{source}: data.train_samples", problem, fix)


def _texts(table: Table, name: str, where: str) -> list[str]:
    """Read a column of texts.

    Raises:
        InputError: A value is missing or is not valid text.
    """
    values = column(table, name, where)
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            problem = "is missing" if value is None else f"is {shown(value)}"
            raise InputError(where, f"{table.source}, row {row}: {name!r} {problem}", "give every row a text")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            problem = f"{name!r} contains half a character (a lone surrogate) at position {error.start}"
            raise InputError(where, f"{table.source}, row {row}: {problem}", "write the whole character") from error
    return values


def _tokenise(
    texts: list[list[str]],
    labels: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    table: str,
    source: str,
) -> tuple[Dataset, float]:
    """Tokenise a split, and count the share of examples that were cut.

    Raises:
        InputError: A text has no tokens.
    """
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=True)
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded}
    lengths = [len(ids) for ids in columns["input_ids"]]
    if 0 in lengths:
        problem = f"{table}, row {lengths.index(0) + 1}: the text has no tokens"
        raise InputError(f"{source}: data.text", problem, "remove the row, or give it a text")
    full = [i for i, length in enumerate(lengths) if length >= max_length]
    cut = 0
    if full:  # only these texts can have been cut: tokenise them again in full
        whole = tokenizer(*([column[i] for i in full] for column in texts), truncation=False, verbose=False)
        cut = sum(len(ids) > max_length for ids in whole["input_ids"])
    return Dataset.from_dict(columns | {"labels": labels}), cut / len(lengths)


def _stats(split: Dataset, texts: list[list[str]], labels: tuple[str, ...] | None, cut: float) -> SplitStats:
    lengths = np.array([len(ids) for ids in split["input_ids"]])
    counts = None
    if labels is not None:
        rows = Counter(split["labels"])
        counts = {name: rows[i] for i, name in enumerate(labels)}
    distinct = {_digest(text) for text in zip(*texts, strict=True)}
    return SplitStats(
        rows=len(split),
        class_counts=counts,
        truncated=cut,
        tokens_mean=float(lengths.mean()),
        tokens_max=int(lengths.max()),
        tokens_total=int(lengths.sum()),
        repeated=len(split) - len(distinct),
    )


def _digest(texts: tuple[str, ...]) -> bytes:
    """A hash of the texts of an example; capital letters and blanks around texts make no difference."""
    return hashlib.blake2b("\0".join(text.strip().lower() for text in texts).encode(), digest_size=16).digest()
