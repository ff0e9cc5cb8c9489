"""Every format of data files gives the same rows."""

import decimal
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from foretune.errors import InputError
from foretune.task.config import DataSpec, TableSpec
from foretune.task.data import read_data
from foretune.task.tables import read_table

ROWS = [
    {"text": 'a "very", good\nfilm; yes', "label": 1},
    {"text": "NA", "label": 0},
    {"text": "a\ttab", "label": 10},
]


def read(path: Path) -> dict[str, list[Any]]:
    return read_table(TableSpec(path=str(path)), "data.train").columns


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def parquet() -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), content)
    return content.getvalue()


LINES = "".join(json.dumps(row) + "\n" for row in ROWS)
COMMAS = 'text,label\n"a ""very"", good\nfilm; yes",1\nNA,0\na\ttab,10\n'
FILES: dict[str, str | bytes] = {
    "lines.jsonl": LINES,
    "array.json": json.dumps(ROWS, indent=1),
    "data.json": json.dumps({"version": "1", "data": ROWS}),
    "lines.json": LINES,
    "commas.csv": COMMAS,
    "blanks.csv": COMMAS.replace("text,label", "\n text ,\tlabel"),
    "semicolons.csv": 'text;label\n"a ""very"", good\nfilm; yes";1\nNA;0\na\ttab;10\n',
    "bars.csv": 'text|label\n"a ""very"", good\nfilm; yes"|1\nNA|0\na\ttab|10\n',
    "tabs.csv": 'text\tlabel\n"a ""very"", good\nfilm; yes"\t1\nNA\t0\n"a\ttab"\t10\n',
    "tabs.tsv": 'text\tlabel\n"a ""very"", good\nfilm; yes"\t1\nNA\t0\n"a\ttab"\t10\n',
    "table.parquet": parquet(),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "two parts.JSONL.GZ": gzip.compress(LINES.encode()[:40]) + gzip.compress(LINES.encode()[40:]) + bytes(8),
    "array.json.gz": gzip.compress(json.dumps(ROWS).encode()),
    "commas.csv.gz": gzip.compress(b"\xef\xbb\xbf" + COMMAS.encode()),
    "tabs.tsv.gz": gzip.compress(b'text\tlabel\n"a ""very"", good\nfilm; yes"\t1\nNA\t0\n"a\ttab"\t10\n'),
}


@pytest.mark.parametrize("name", FILES)
def test_all_formats_give_the_same_rows(name: str, tmp_path: Path) -> None:
    columns = read(written(tmp_path, name, FILES[name]))
    assert columns["text"] == [row["text"] for row in ROWS]
    assert list(map(int, columns["label"])) == [1, 0, 10]
    assert [path.name for path in tmp_path.iterdir()] == [name], "no caches"


def test_blanks_around_column_names_are_ignored(tmp_path: Path) -> None:
    table = TableSpec(path=str(written(tmp_path, "t.csv", "the text , label\na,1\nb,0\n")))
    spec = DataSpec(train=table, eval=table, text=" the text", label="label ")
    assert read_data(spec, False).train_texts == [["a", "b"]]
    rows = [{"text ": "a", " label": 1}, {"text ": "b", " label": 2}]
    assert read(written(tmp_path, "t.json", json.dumps(rows))) == {"text": ["a", "b"], "label": [1, 2]}


def test_decimals_of_a_parquet_file_become_floats(tmp_path: Path) -> None:
    content = io.BytesIO()
    rows = {"text": ["a", "b"], "label": [decimal.Decimal("0.50"), decimal.Decimal("1.25")]}
    pyarrow.parquet.write_table(pyarrow.table(rows), content)
    assert read(written(tmp_path, "t.parquet", content.getvalue()))["label"] == [0.5, 1.25]


def test_compressed_files_with_too_much_content_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foretune.task.files.LARGEST_DECOMPRESSED", 100)
    assert read(written(tmp_path, "t.csv.gz", gzip.compress(b"a" * 50 + b"\n1\n"))) == {"a" * 50: ["1"]}
    for content in (gzip.compress(b"a" * 101), gzip.compress(b"a" * 60) * 2):
        with pytest.raises(InputError, match="more than 100 bytes"):
            read(written(tmp_path, "t.csv.gz", content))


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["1_0", "2_0"], ("1_0", "2_0")),
        (["9007199254740993", "9007199254740992"], ("9007199254740992", "9007199254740993")),
        (["1.0", "2"], ("1", "2")),
        ([" 1", "2 "], ("1", "2")),
        (["0,5", "1,5"], ("0,5", "1,5")),
        (["nan", "pos"], ("nan", "pos")),
    ],
)
def test_classes_of_text_files(labels: list[str], names: tuple[str, ...], tmp_path: Path) -> None:
    lines = "".join(f"some text\t{label}\n" for label in labels)
    table = TableSpec(path=str(written(tmp_path, "t.tsv", f"text\tlabel\n{lines}")))
    assert read_data(DataSpec(train=table, eval=table, text="text", label="label"), False).labels == names
