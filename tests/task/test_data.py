from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from helpers import tiny_tokenizer, write_jsonl

from foretune.errors import InputError
from foretune.task.config import DataSpec, TableSpec
from foretune.task.data import EncodedData, encode_data, read_data


def encode(train: Path | TableSpec, regression: bool = False, max_length: int = 16, **keys: Any) -> EncodedData:
    table = train if isinstance(train, TableSpec) else TableSpec(path=str(train))
    base: dict[str, Any] = {"train": table, "eval": table, "text": "text", "label": "label"}
    spec = DataSpec(**(base | keys))
    return encode_data(read_data(spec, regression), tiny_tokenizer(), max_length)


def rows(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": "the film was good", "label": label} for label in labels]


@pytest.mark.parametrize(
    ("labels", "names", "indices"),
    [
        ([1, 0, 1], ("0", "1"), [1, 0, 1]),
        ([10, 9, -1], ("-1", "9", "10"), [2, 1, 0]),
        (["b", "a", "b"], ("a", "b"), [1, 0, 1]),
        ([True, False, 1], ("0", "1"), [1, 0, 1]),
        ([2.0, 1.0, 2], ("1", "2"), [1, 0, 1]),
        (["1.5", "v2", "1.5"], ("1.5", "v2"), [0, 1, 0]),
    ],
)
def test_classes_and_their_order(labels: list[Any], names: tuple[str, ...], indices: list[int], tmp_path: Path) -> None:
    data = encode(write_jsonl(tmp_path / "t.jsonl", rows(labels)))
    assert data.labels == names
    assert data.train["labels"] == indices


def test_all_formats_give_the_same_examples(tmp_path: Path) -> None:
    content = [
        {"text": 'a "very", good\nfilm', "label": 1},
        {"text": "NA", "label": 0},
        {"text": "null", "label": 10},
    ]
    jsonl = encode(write_jsonl(tmp_path / "t.jsonl", content))
    (tmp_path / "t.csv").write_text('text,label\n"a ""very"", good\nfilm",1\nNA,0\nnull,10\n')
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(content), tmp_path / "t.parquet")
    for name in ("t.csv", "t.parquet"):
        other = encode(tmp_path / name)
        assert other.train.to_dict() == jsonl.train.to_dict()
        assert other.labels == jsonl.labels == ("0", "1", "10")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["t.csv", "t.jsonl", "t.parquet"]  # no caches


def test_a_byte_order_mark_and_blank_lines_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"text": "good", "label": 1}\r\n\r\n{"text": "bad\xe2\x80\xa8", "label": 0}')
    assert len(encode(path).train) == 2


def test_regression_targets_are_numbers(tmp_path: Path) -> None:
    data = encode(write_jsonl(tmp_path / "t.jsonl", rows([1, -0.5, 2.25])), regression=True)
    assert data.labels is None and data.train_stats.class_counts is None
    assert data.train["labels"] == [1.0, -0.5, 2.25]


def test_class_names_of_the_hub_are_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["neg", "pos"])})
    table = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [1, 1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: table)
    data = encode(TableSpec(hub="org/set", split="train"))
    assert data.labels == ("neg", "pos") and data.train["labels"] == [1, 1]
    hidden = datasets.Dataset.from_dict({"text": ["good", "bad"], "label": [-1, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: hidden)
    with pytest.raises(InputError, match="hidden"):
        encode(TableSpec(hub="org/set", split="test"))


def test_columns_truncation_and_statistics(tmp_path: Path) -> None:
    texts = ["good", "good " * 3, "good " * 4, "good", "BAD"]
    content = [{"text": text, "label": i % 2, "other": 0} for i, text in enumerate(texts)]
    data = encode(write_jsonl(tmp_path / "t.jsonl", content), max_length=5, eval_samples=2)
    assert data.train.column_names == ["input_ids", "attention_mask", "token_type_ids", "labels"]
    stats = data.train_stats
    assert [len(ids) for ids in data.train["input_ids"]] == [3, 5, 5, 3, 3]
    assert (stats.rows, stats.class_counts, stats.truncated, stats.repeated) == (5, {"0": 3, "1": 2}, 0.2, 1)
    assert (stats.tokens_mean, stats.tokens_max, stats.tokens_total) == (3.8, 5, 19)
    assert data.overlap == data.eval_stats.rows == 2


def test_sentence_pairs(tmp_path: Path) -> None:
    content = [{"a": "good film", "b": "bad", "label": i} for i in range(2)]
    data = encode(write_jsonl(tmp_path / "t.jsonl", content), text=["a", "b"])
    assert data.train[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1]
