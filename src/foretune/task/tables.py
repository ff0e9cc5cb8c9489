"""Reading rows from files and from the hub, with every fault named by its line.

Tables are read into memory rather than through ``datasets``' builders: those write caches, and their errors
speak of Arrow rather than of the user's file.
"""

import csv
import io
import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.task.config import TableSpec
from foretune.task.problems import shown

SUFFIXES = (".jsonl", ".csv", ".parquet")


@dataclass(frozen=True)
class Table:
    """Rows by column.

    Args:
        source: How messages call it: the file's path or the data set's name.
        columns: Every column as a list with one value per row; ``None`` where a row has none.
        class_names: The names behind integer labels, for the columns where the hub gives them.
        untyped: All values are text, as in a csv file.
    """

    source: str
    columns: dict[str, list[Any]]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    untyped: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def head(self, rows: int | None) -> "Table":
        """The first ``rows`` rows; all of them when None."""
        columns = {name: values[:rows] for name, values in self.columns.items()}
        return Table(self.source, columns, self.class_names, self.untyped)


def read_table(spec: TableSpec, where: str) -> Table:
    """Read a split; ``where`` is the field that names it, such as ``run.yaml: data.train``.

    Raises:
        InputError: It is missing, unreadable, malformed or empty.
    """
    table = _from_hub(spec, where) if spec.path is None else _from_file(Path(spec.path), where)
    if len(table) == 0:
        raise InputError(where, f"{table.source} has no rows", "give a file with one example per row")
    return table


def _from_file(path: Path, where: str) -> Table:
    if path.suffix.lower() not in SUFFIXES:
        found = f"{path} has the suffix {path.suffix!r}" if path.suffix else f"{path} has no suffix"
        raise InputError(where, found, f"give a file that ends in {', '.join(SUFFIXES)}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(
            where, f"no such file: {path}", "relative paths start at the folder of the YAML file"
        ) from error
    except OSError as error:
        raise InputError(where, f"{path} cannot be read ({error.strerror})", "give a readable file") from error
    if path.suffix.lower() == ".parquet":
        return _from_parquet(content, str(path), where)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(where, f"{path}, line {line}: not UTF-8 text", "save the file as UTF-8") from error
    return _from_jsonl(text, str(path), where) if path.suffix.lower() == ".jsonl" else _from_csv(text, str(path), where)


def _from_jsonl(text: str, source: str, where: str) -> Table:
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        fix = 'write one JSON object per line, such as {"text": "...", "label": 1}'
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InputError(where, f"{source}, line {number}: not valid JSON ({error})", fix) from error
        if not isinstance(row, dict):
            raise InputError(where, f"{source}, line {number}: found {shown(row)} instead of an object", fix)
        rows.append(row)
    names = dict.fromkeys(name for row in rows for name in row)
    return Table(source, {name: [row.get(name) for row in rows] for name in names})


def _from_csv(text: str, source: str, where: str) -> Table:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    fix = "write a header line, then as many values on each line; quote values that contain commas"
    rows: list[list[str]] = []
    try:
        header = next(reader, [])
        for row in reader:
            if row and len(row) != len(header):
                found = f"{source}, line {reader.line_num}: {len(row)} values under {len(header)} column names"
                raise InputError(where, found, fix)
            rows += [row] if row else []
    except csv.Error as error:
        raise InputError(where, f"{source}, line {reader.line_num}: not valid CSV ({error})", fix) from error
    if len(set(header)) != len(header):
        raise InputError(where, f"{source}: two columns have the same name ({', '.join(header)})", "rename one of them")
    return Table(source, {name: [row[i] for row in rows] for i, name in enumerate(header)}, untyped=True)


def _from_parquet(content: bytes, source: str, where: str) -> Table:
    import pyarrow
    import pyarrow.parquet

    try:
        table = pyarrow.parquet.read_table(pyarrow.BufferReader(content))
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(
            where, f"{source} is not a parquet file ({error})", "write it again, or give jsonl or csv"
        ) from error
    return Table(source, {name: table.column(name).to_pylist() for name in table.column_names})


def _from_hub(spec: TableSpec, where: str) -> Table:
    import datasets

    source = "/".join(part for part in (spec.hub, spec.name, spec.split) if part)
    try:
        dataset = datasets.load_dataset(str(spec.hub), spec.name, split=spec.split)
    except Exception as error:  # the hub, the network and the data set's own files each fail in their own way
        reason = " ".join(str(error).split())[:300].rstrip(".")
        fix = "check hub, name and split, and the connection; or give a jsonl, csv or parquet file"
        raise InputError(where, f"cannot load {source} ({type(error).__name__}: {reason})", fix) from error
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(where, f"{source} is not one table", "name one split, such as split: train")
    names = {n: f.names for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
    return Table(source, {name: list(dataset[name]) for name in dataset.column_names}, class_names=names)
