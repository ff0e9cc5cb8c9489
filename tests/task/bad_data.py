"""Wrong data files: malformed files, files that do not fit their suffix, and labels that cannot be used."""

import gzip
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from helpers import tiny_rows, write_jsonl, write_tiny_run

from .writing import REGRESSION, ROW, BadInput, relabel, set_row, train_bytes, train_rows

DIGITS = b"9" * 5000
SURROGATE = rb'"\ud800"'


def odd_file(name: str, make: Callable[[Path], Any]) -> Callable[[Path], Path]:
    """A run whose training data is not an ordinary file."""

    def write(folder: Path) -> Path:
        path = write_tiny_run(folder, data={"train": name})
        make(folder / name)
        return path

    return write


def sorted_rows(folder: Path) -> Path:
    path = write_tiny_run(folder, data={"train_samples": 6})
    rows = sorted(tiny_rows(24, seed=1), key=lambda row: row["label"])
    write_jsonl(folder / "train.jsonl", rows)
    return path


def later_label(folder: Path) -> Path:
    path = write_tiny_run(folder, data={"train_samples": 16})
    rows = [*tiny_rows(16, seed=1), {"text": "it was", "label": 2}]
    write_jsonl(folder / "train.jsonl", rows)
    write_jsonl(folder / "eval.jsonl", rows[-3:])
    return path


def capital_label(folder: Path) -> Path:
    path = write_tiny_run(folder)
    write_jsonl(folder / "train.jsonl", [{"text": "it was", "label": label} for label in ("good", "bad")])
    write_jsonl(folder / "eval.jsonl", [{"text": "it was", "label": "Good"}])
    return path


def parquet(table: pyarrow.Table) -> bytes:
    content = io.BytesIO()
    pyarrow.parquet.write_table(table, content)
    return content.getvalue()


TWICE = pyarrow.Table.from_arrays([pyarrow.array(["a", "b"])] * 2, names=["text", "text"])
NAMED = pyarrow.table({"text": ["a", "b"], "label": [0, 1]})
NOT_TEXT = pyarrow.Table.from_arrays(
    [
        pyarrow.Array.from_buffers(
            pyarrow.string(), 1, [None, pyarrow.py_buffer(b"\0\0\0\0\2\0\0\0"), pyarrow.py_buffer(b"\xff\xff")]
        )
    ],
    names=["text"],
)

BAD_DATA = [
    # files
    BadInput("pipe", odd_file("t.jsonl", os.mkfifo), ("data.train", "t.jsonl", "a pipe or a device")),
    BadInput("device", odd_file("t.jsonl", lambda path: path.symlink_to("/dev/zero")), ("data.train", "a device")),
    BadInput("folder", odd_file("t.jsonl", Path.mkdir), ("data.train", "t.jsonl", "it is a folder")),
    BadInput(
        "link to itself", odd_file("t.jsonl", lambda path: path.symlink_to(path)), ("data.train", "cannot be read")
    ),
    BadInput("not gzip", train_bytes(ROW, "t.jsonl.gz"), ("t.jsonl.gz", "not a gzip file", "gzip")),
    BadInput("cut gzip", train_bytes(gzip.compress(ROW * 9)[:-9], "t.csv.gz"), ("t.csv.gz", "cut off", "again")),
    BadInput("gzip without its suffix", train_bytes(gzip.compress(ROW)), ("train.jsonl", "gzip", "end in .gz")),
    BadInput(
        "gzip twice",
        train_bytes(gzip.compress(gzip.compress(ROW)), "t.csv.gz"),
        ("t.csv.gz", "gzip", "compressed twice"),
    ),
    BadInput("gzip suffix alone", train_bytes(gzip.compress(ROW), "t.gz"), ("t.gz", "'.gz'", ".jsonl, .json, .csv")),
    BadInput("packed parquet", train_bytes(b"", "t.parquet.gz"), ("t.parquet.gz", "compressed text files end in .gz")),
    BadInput("utf-16 data", train_bytes("text,label\n".encode("utf-16-le"), "t.csv"), ("line 1", "NUL", "UTF-8")),
    BadInput(
        "pointer to data",
        train_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 5\n"),
        ("train.jsonl", "Git LFS pointer", "git lfs pull"),
    ),
    # lines and arrays
    BadInput(
        "array of columns",
        train_bytes(b'{"text": ["a"], "label": [1]}', "t.json"),
        ("t.json", "instead of a JSON array"),
    ),
    BadInput("array as lines", train_bytes(b"[\n" + ROW + b"]\n"), ("line 1", "not valid JSON", "call the file .json")),
    BadInput(
        "column twice in an object", train_bytes(b'{"text": "a", "text": "b"}\n'), ("line 1", "'text' occurs twice")
    ),
    BadInput("number without end in json", train_bytes(ROW + b'{"label": %b}\n' % DIGITS), ("line 2", "5,000 digits")),
    BadInput("deep json", train_bytes(b"[" * 10**5 + b"]" * 10**5), ("line 1", "not valid JSON", "too deep")),
    BadInput(
        "no array", train_bytes(b'{"rows": [],\n"more": 1}', "t.json"), ("t.json", "instead of a JSON array", "{data:")
    ),
    BadInput(
        "array and more", train_bytes(b'[{"text": "a"}] x', "t.json"), ("t.json, line 1", "Extra data", "array of")
    ),
    BadInput("array of numbers", train_bytes(b"[1, 2]", "t.json"), ("t.json", "row 1 is 1", "array of objects")),
    BadInput("cut array", train_bytes(b'[\n{"text": "a"},\n', "t.json"), ("t.json, line 3", "not valid JSON", "array")),
    BadInput("empty json", train_bytes(b"", "t.json"), ("t.json, line 1", "not valid JSON", "array of objects")),
    # tables
    BadInput("ragged tsv", train_bytes(b"text\tlabel\na, b\t1\tc\n", "t.tsv"), ("line 2", "3 values", "contain tabs")),
    BadInput("semicolons", train_bytes(b"text;label\na;b;1\n", "t.csv"), ("line 2", "3 values", "contain semicolons")),
    BadInput("csv twice but for blanks", train_bytes(b"text, text\na,1\n", "t.csv"), ("'text'", "same name")),
    BadInput(
        "open quote", train_bytes(b'text,label\n"a,1\nb,0\n', "t.csv"), ("t.csv, line 3", "not valid CSV", "quote")
    ),
    BadInput("parquet twice", train_bytes(parquet(TWICE), "t.parquet"), ("'text'", "same name", "Rename")),
    BadInput(
        "damaged parquet",
        train_bytes(parquet(NAMED).replace(b"text", b"te\xff\xff"), "t.parquet"),
        ("t.parquet", "not a parquet file"),
    ),
    BadInput("parquet not utf-8", train_bytes(parquet(NOT_TEXT), "t.parquet"), ("'text'", "cannot be read", "utf-8")),
    BadInput("no header", train_bytes(b"good film,1\nbad film,0\ndull,0\n", "t.csv"), ("'label'", "first line names")),
    # texts and labels
    BadInput(
        "half a character in a text", train_bytes(ROW + b'{"text": %b, "label": 0}' % SURROGATE), ("row 2", "half a")
    ),
    BadInput(
        "half a character in a label", train_bytes(ROW + b'{"text": "", "label": %b}' % SURROGATE), ("row 2", "half a")
    ),
    BadInput("blank label", train_rows(set_row(2, label="  ")), ("data.label", "row 3", "missing")),
    BadInput("long label", train_rows(set_row(2, label="9" * 5000)), ("data.label", "row 3", "5,000 characters")),
    BadInput(
        "large class", train_rows(set_row(2, label=1e300)), ("data.label", "row 3", "1e+300", "too large for a class")
    ),
    BadInput(
        "large class in csv",
        train_bytes(b"text,label\na,1\nb,%b\n" % DIGITS, "t.csv"),
        ("row 2", "too large for a class"),
    ),
    BadInput(
        "sorted rows", sorted_rows, ("data.train_samples", "first 6 rows", "label 0", "24 rows have 2", "Shuffle")
    ),
    BadInput("label of rows that are cut", later_label, ("data.label", "row 3", "'2'", "raise data.train_samples")),
    BadInput("label in capitals", capital_label, ("data.label", "row 1", "'Good' does not occur", "'good' does")),
    # targets
    BadInput(
        "target beyond float", train_rows(set_row(3, label=1e308), model=REGRESSION), ("row 4", "1e+308", "Scale")
    ),
    BadInput("equal targets", train_rows(relabel(lambda row: 2.5), model=REGRESSION), ("all 12", "2.5", "differ")),
    BadInput(
        "decimal comma",
        train_bytes(b"text;label\na;1\nb;0,5\n", "t.csv", model=REGRESSION),
        ("data.label", "row 2", "'0,5', with a decimal comma", "0.5"),
    ),
    BadInput(
        "no target in csv", train_bytes(b"text,label\na,\nb,1\n", "t.csv", model=REGRESSION), ("row 1", "is missing")
    ),
    BadInput("nan in csv", train_bytes(b"text,label\na,nan\nb,1\n", "t.csv", model=REGRESSION), ("'nan'", "finite")),
    BadInput(
        "target in quotes", train_rows(set_row(3, label="0.5"), model=REGRESSION), ("row 4", "'0.5', which is text")
    ),
    BadInput(
        "underscores are no numbers",
        train_bytes(b"text,label\na,1\nb,1_000\n", "t.csv", model=REGRESSION),
        ("row 2", "'1_000'", "finite number"),
    ),
]
