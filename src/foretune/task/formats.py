"""The formats of data files, each read into columns, with every fault named by its line.

Files are read into memory rather than through ``datasets``' builders: those write caches, and their errors
speak of Arrow rather than of the user's file.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foretune.task.files import FileFault, as_text
from foretune.task.problems import said, shown

Columns = Sequence[tuple[str, list[Any]]]
Reader = Callable[[bytes, Path, str], tuple[Columns, bool]]  # the columns, and whether all values are text
ROW = 'such as {"text": "...", "label": 1}'
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _from_jsonl(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    return _from_lines(as_text(content, path, where), path, where)


def _from_lines(text: str, path: Path, where: str) -> tuple[Columns, bool]:
    rows = []
    fix = f"write one JSON object per line, {ROW}"
    if text.lstrip()[:1] == "[":
        fix += ", or call the file .json if it is one array"
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _json(line)
        except (ValueError, RecursionError) as error:
            raise FileFault(path, where, f"not valid JSON ({_json_fault(error)})", fix, number) from error
        if not isinstance(row, dict):
            raise FileFault(path, where, f"found {shown(row)} instead of an object", fix, number)
        rows.append(row)
    return _columns(rows), False


def _from_json(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    """An array of objects, by itself or under ``data``; lines of objects are read too, as many call them so.

    Raises:
        FileFault: It is neither.
    """
    text = as_text(content, path, where)
    fix = f"write an array of objects, {ROW}, or {{data: [...]}} around it"
    try:
        rows = _json(text)
    except (ValueError, RecursionError) as error:
        if isinstance(error, json.JSONDecodeError) and error.msg == "Extra data" and text.lstrip()[:1] == "{":
            return _from_lines(text, path, where)
        line = error.lineno if isinstance(error, json.JSONDecodeError) else None
        raise FileFault(path, where, f"not valid JSON ({_json_fault(error)})", fix, line) from error
    if isinstance(rows, dict) and isinstance(rows.get("data"), list):
        rows = rows["data"]
    elif isinstance(rows, dict) and not any(isinstance(value, list | dict) for value in rows.values()):
        rows = [rows]
    if not isinstance(rows, list):
        raise FileFault(path, where, f"found {shown(rows)} instead of an array", fix)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise FileFault(path, where, f"row {number} is {shown(row)} instead of an object", fix)
    return _columns(rows), False


def _json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object, parse_int=_whole_number)


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "lists or objects nested too deep" if isinstance(error, RecursionError) else said(error)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(shown(name) for name in names if names.count(name) > 1)} stands twice")
    return found


def _whole_number(digits: str) -> int:
    if len(digits) > 100:
        raise ValueError(f"a number of {len(digits):,} digits")
    return int(digits)


def _columns(rows: list[dict[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return [(name, [row.get(name) for row in rows]) for name in names]


def _from_csv(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    """Values between commas, or between what the header has instead of them."""
    text = as_text(content, path, where)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    return _delimited(text, next((each for each in DELIMITERS if each in header), ","), path, where)


def _from_tsv(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    return _delimited(as_text(content, path, where), "\t", path, where)


def _delimited(text: str, delimiter: str, path: Path, where: str) -> tuple[Columns, bool]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    fix = (
        "write a header line, then as many values on each line; "
        f'quote values that contain {DELIMITERS[delimiter]}, and write " as "" within quotes'
    )
    rows: list[list[str]] = []
    try:
        header = next((row for row in reader if row), [])
        for row in reader:
            if row and len(row) != len(header):
                found = f"{len(row)} values under {len(header)} column names"
                raise FileFault(path, where, found, fix, reader.line_num)
            rows += [row] if row else []
    except csv.Error as error:
        raise FileFault(path, where, f"not valid CSV ({said(error)})", fix, reader.line_num) from error
    return [(name, [row[i] for row in rows]) for i, name in enumerate(header)], True


def _from_parquet(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).read()
    except Exception as error:  # a damaged file fails in many ways
        fix = "write it again, or give jsonl or csv"
        raise FileFault(path, where, f"not a parquet file ({said(error)})", fix) from error
    columns = []
    for name, values in zip(table.column_names, table.columns, strict=True):
        try:
            number = pyarrow.types.is_decimal(values.type)
            columns.append((name, (values.cast(pyarrow.float64()) if number else values).to_pylist()))
        except Exception as error:
            found = f"the column {shown(name)} cannot be read ({said(error)})"
            raise FileFault(path, where, found, "write it again as text or numbers, or leave it out") from error
    return columns, False


FORMATS: dict[str, Reader] = {
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
    ".parquet": _from_parquet,
}
