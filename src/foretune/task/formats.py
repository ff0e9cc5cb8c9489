"""Readers for the formats of data files. They return columns, and their errors name the faulty line.

Files are read into memory, without the builders of ``datasets``. Those write caches, and their errors are about Arrow
tables instead of the user's file.
"""

import csv
import io
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from foretune.task.files import FileFault, as_text
from foretune.task.problems import error_text, shown

Columns = Sequence[tuple[str, list[Any]]]
# A reader takes the content, the path and the field that names the file. It returns the columns, and whether all values
# are text.
Reader = Callable[[bytes, Path, str], tuple[Columns, bool]]
EXAMPLE = 'such as {"text": "...", "label": 1}'
DELIMITERS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def _from_jsonl(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    return _from_lines(as_text(content, path, where), path, where)


def _from_lines(text: str, path: Path, where: str) -> tuple[Columns, bool]:
    rows = []
    fix = f"write one JSON object per line, {EXAMPLE}"
    if text.lstrip()[:1] == "[":
        fix += ", or call the file .json if it is one array"
    for number, line in enumerate(io.StringIO(text, newline="\n"), start=1):
        if not line.strip():
            continue
        try:
            row = _parse_json(line)
        except (ValueError, RecursionError) as error:
            raise FileFault(path, where, f"not valid JSON ({_json_fault(error)})", fix, number) from error
        if not isinstance(row, dict):
            raise FileFault(path, where, f"found {shown(row)} instead of a JSON object", fix, number)
        rows.append(row)
    return _columns_of(rows), False


def _from_json(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    """Read an array of objects, alone or under the key ``data``; also one object per line, as many .json files have.

    Raises:
        FileFault: The file has neither form.
    """
    text = as_text(content, path, where)
    fix = f"write an array of objects, {EXAMPLE}, alone or as {{data: [...]}}"
    try:
        rows = _parse_json(text)
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
        raise FileFault(path, where, f"found {shown(rows)} instead of a JSON array", fix)
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise FileFault(path, where, f"row {number} is {shown(row)} instead of a JSON object", fix)
    return _columns_of(rows), False


def _parse_json(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_object_of_pairs, parse_int=_whole_number)


def _json_fault(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at column {error.colno}"
    return "lists or objects are nested too deeply" if isinstance(error, RecursionError) else error_text(error)


def _object_of_pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the key {next(shown(name) for name in names if names.count(name) > 1)} occurs twice")
    return content


def _whole_number(digits: str) -> int:
    if len(digits) > 100:
        raise ValueError(f"a number with {len(digits):,} digits")
    return int(digits)


def _columns_of(rows: list[dict[str, Any]]) -> Columns:
    """Turn rows into columns; the value of a missing key is None."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [(name, [row.get(name) for row in rows]) for name in names]


def _from_csv(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    """Read values that are separated by commas, or by the delimiter that the header has instead."""
    text = as_text(content, path, where)
    header = text.lstrip("\r\n").split("\n", 1)[0]
    return _delimited(text, next((delimiter for delimiter in DELIMITERS if delimiter in header), ","), path, where)


def _from_tsv(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    return _delimited(as_text(content, path, where), "\t", path, where)


def _delimited(text: str, delimiter: str, path: Path, where: str) -> tuple[Columns, bool]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    fix = (
        "write a header line, and on every further line one value for every column; "
        f'quote values that contain {DELIMITERS[delimiter]}, and write " as "" within quotes'
    )
    rows: list[list[str]] = []
    try:
        header = next((row for row in reader if row), [])
        for row in reader:
            if row and len(row) != len(header):
                problem = f"{len(row)} values under {len(header)} column names"
                raise FileFault(path, where, problem, fix, reader.line_num)
            rows += [row] if row else []
    except csv.Error as error:
        raise FileFault(path, where, f"not valid CSV ({error_text(error)})", fix, reader.line_num) from error
    return [(name, [row[i] for row in rows]) for i, name in enumerate(header)], True


def _from_parquet(content: bytes, path: Path, where: str) -> tuple[Columns, bool]:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.ParquetFile(pyarrow.BufferReader(content)).read()
    except Exception as error:  # damaged files raise many kinds of errors
        fix = "write the file again, or give a jsonl or csv file"
        raise FileFault(path, where, f"it is not a parquet file ({error_text(error)})", fix) from error
    columns = []
    for name, values in zip(table.column_names, table.columns, strict=True):
        try:
            decimal = pyarrow.types.is_decimal(values.type)
            columns.append((name, (values.cast(pyarrow.float64()) if decimal else values).to_pylist()))
        except Exception as error:
            problem = f"the column {shown(name)} cannot be read ({error_text(error)})"
            raise FileFault(
                path, where, problem, "write the column again as text or numbers, or leave it out"
            ) from error
    return columns, False


FORMATS: dict[str, Reader] = {
    ".jsonl": _from_jsonl,
    ".json": _from_json,
    ".csv": _from_csv,
    ".tsv": _from_tsv,
    ".parquet": _from_parquet,
}
