"""From rows to tokenised examples, with the numbers a user wants to know about them."""

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
    """What a split looks like.

    Args:
        rows: How many examples.
        class_counts: Examples per class; None for regression.
        truncated: The share of examples that were cut at ``max_length``.
        tokens_mean: Mean number of tokens per example, after truncation.
        tokens_max: Tokens of the longest example, after truncation.
        tokens_total: Tokens of all examples, after truncation.
        repeated: How many examples have the same text as an earlier one of the split.
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
    """Both splits, tokenised; ``labels`` are the class names, None for regression.

    ``overlap`` counts the evaluation examples whose text is also a training text.
    """

    train: Dataset
    eval: Dataset
    labels: tuple[str, ...] | None
    train_stats: SplitStats
    eval_stats: SplitStats
    overlap: int


@dataclass(frozen=True)
class RawData:
    """Both splits, read and checked but not tokenised: texts per column, and labels as indices or numbers."""

    train_texts: list[list[str]]
    eval_texts: list[list[str]]
    train_labels: list[Any]
    eval_labels: list[Any]
    labels: tuple[str, ...] | None
    train_source: str
    eval_source: str


def read_data(spec: DataSpec, regression: bool, source: str = "run.yaml") -> RawData:
    """Read and check both splits; ``source`` is the file that messages name.

    Raises:
        InputError: A file, column, text or label is missing or wrong; the message names the row.
    """
    whole = read_table(spec.train, f"{source}: data.train")
    train = whole.head(spec.train_samples)
    test = read_table(spec.eval, f"{source}: data.eval").head(spec.eval_samples)
    if len(train) < 2:
        raise InputError(f"{source}: data.train", f"{train.source} has {len(train)} row", "give at least two examples")
    where = f"{source}: data.label"
    if len(train) < len(whole):
        _check_cut(train, whole, spec.label, source)
    names = None if regression else class_names(train, spec.label, where)

    def to_labels(table: Table) -> list[Any]:
        if names is None:
            return targets(table, spec.label, where)
        return class_indices(table, spec.label, names, where, cut=len(train) < len(whole))

    train_labels = to_labels(train)
    if names is None and min(train_labels) == max(train_labels):
        found = f"all {len(train)} training targets are {train_labels[0]}"
        raise InputError(where, found, "give training rows with targets that differ: there is nothing to learn")
    return RawData(
        train_texts=[_texts(train, name, f"{source}: data.text") for name in spec.text_columns],
        eval_texts=[_texts(test, name, f"{source}: data.text") for name in spec.text_columns],
        train_labels=train_labels,
        eval_labels=to_labels(test),
        labels=names,
        train_source=train.source,
        eval_source=test.source,
    )


def encode_data(
    raw: RawData, tokenizer: PreTrainedTokenizerBase, max_length: int, source: str = "run.yaml"
) -> EncodedData:
    """Tokenise both splits: ``input_ids``, ``attention_mask``, ``labels`` and, if used, ``token_type_ids``.

    Texts are cut at ``max_length`` tokens and not padded; one without tokens is an ``InputError``.
    """
    train, train_cut = _tokenise(raw.train_texts, raw.train_labels, tokenizer, max_length, raw.train_source, source)
    test, eval_cut = _tokenise(raw.eval_texts, raw.eval_labels, tokenizer, max_length, raw.eval_source, source)
    known = {_digest(text) for text in zip(*raw.train_texts, strict=True)}
    return EncodedData(
        train=train,
        eval=test,
        labels=raw.labels,
        train_stats=_stats(train, raw.train_texts, raw.labels, train_cut),
        eval_stats=_stats(test, raw.eval_texts, raw.labels, eval_cut),
        overlap=sum(_digest(text) in known for text in zip(*raw.eval_texts, strict=True)),
    )


def _check_cut(train: Table, whole: Table, label: str, source: str) -> None:
    """See that the first rows, where only they are kept, are not all of one label in a file that has several.

    Raises:
        InputError: They are.
    """
    kept, there = ({repr(value) for value in column(table, label, f"{source}: data.label")} for table in (train, whole))
    if len(kept) == 1 < len(there):
        found = f"the first {len(train)} rows of {whole.source} all have the label {shortened(kept.pop(), 60)}"
        fix = "shuffle the file, or raise data.train_samples"
        raise InputError(f"{source}: data.train_samples", f"{found}, its {len(whole)} rows have {len(there)}", fix)


def _texts(table: Table, name: str, where: str) -> list[str]:
    values = column(table, name, where)
    for row, value in enumerate(values, start=1):
        if not isinstance(value, str):
            found = "is missing" if value is None else f"is {shown(value)}"
            raise InputError(where, f"{table.source}, row {row}: {name!r} {found}", "give a text in every row")
        try:
            value.encode()
        except UnicodeEncodeError as error:
            found = f"{name!r} holds half a character (a lone surrogate) at position {error.start}"
            raise InputError(where, f"{table.source}, row {row}: {found}", "write the whole character") from error
    return values


def _tokenise(
    texts: list[list[str]],
    labels: list[Any],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    table: str,
    source: str,
) -> tuple[Dataset, float]:
    # The tokenised split and the share of its examples that were cut.
    encoded = tokenizer(*texts, truncation=True, max_length=max_length, return_attention_mask=True)
    columns = {name: encoded[name] for name in ("input_ids", "attention_mask", "token_type_ids") if name in encoded}
    lengths = [len(ids) for ids in columns["input_ids"]]
    if 0 in lengths:
        found = f"{table}, row {lengths.index(0) + 1}: the text becomes no tokens"
        raise InputError(f"{source}: data.text", found, "remove the empty text")
    full = [i for i, length in enumerate(lengths) if length >= max_length]
    cut = 0
    if full:  # only these can have been cut: see how long they are by themselves
        whole = tokenizer(*([column[i] for i in full] for column in texts), truncation=False, verbose=False)
        cut = sum(len(ids) > max_length for ids in whole["input_ids"])
    return Dataset.from_dict(columns | {"labels": labels}), cut / len(lengths)


def _stats(split: Dataset, texts: list[list[str]], labels: tuple[str, ...] | None, cut: float) -> SplitStats:
    lengths = np.array([len(ids) for ids in split["input_ids"]])
    counts = None
    if labels is not None:
        seen = Counter(split["labels"])
        counts = {name: seen[i] for i, name in enumerate(labels)}
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
    return hashlib.blake2b("\0".join(text.strip().lower() for text in texts).encode(), digest_size=16).digest()
