"""Reads a split (the training or the evaluation rows) from a file or from the hub into a table of named columns."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.task.config import TableSpec
from foretune.task.files import FileFault, decompressed, read_file
from foretune.task.formats import FORMATS, Columns
from foretune.task.problems import error_text, shown

SUFFIXES = tuple(FORMATS)
FIX = "give a jsonl, json, csv, tsv or parquet file; relative paths start at the folder of the YAML file"


@dataclass(frozen=True)
class Table:
    """A table of rows, stored by column.

    Args:
        source: The table's name in messages: the file's path or the data set's name.
        columns: Every column as a list with one value per row; ``None`` where a row has no value.
        class_names: For columns of integer labels to which the hub gives names: the names.
        untyped: Whether all values are text, as in a csv file.
    """

    source: str
    columns: dict[str, list[Any]]
    class_names: dict[str, list[str]] = field(default_factory=dict)
    untyped: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.columns.values()), []))

    def head(self, rows: int | None) -> "Table":
        """A table of the first ``rows`` rows; the whole table for None."""
        columns = {name: values[:rows] for name, values in self.columns.items()}
        return Table(self.source, columns, self.class_names, self.untyped)


def read_table(spec: TableSpec, where: str) -> Table:
    """Read a split.

    Args:
        spec: The file or the data set of the hub.
        where: The field that names the split, such as ``run.yaml: data.train``.

    Returns:
        The rows.

    Raises:
        InputError: The split is missing, unreadable, malformed or empty.
    """
    table = _from_hub(spec, where) if spec.path is None else _from_file(Path(spec.path), where)
    if len(table) == 0:
        raise InputError(where, f"{table.source} has no rows", "give a file with one example per row")
    return table


def _from_file(path: Path, where: str) -> Table:
    """Read a file in the format of its suffix; text formats may be compressed and end in ``.gz``.

    Raises:
        InputError: There is no format with this suffix.
        FileFault: The content does not fit the suffix.
    """
    compressed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if compressed else path.suffix.lower()
    if suffix not in FORMATS or (compressed and suffix == ".parquet"):
        problem = f"{path} has the suffix {path.suffix!r}" if path.suffix else f"{path} has no suffix"
        fix = f"give a file that ends in {', '.join(SUFFIXES)}; compressed text files end in .gz after that"
        raise InputError(where, problem, fix)
    content = read_file(path, where, FIX)
    if content.startswith(b"version https://git-lfs"):
        raise FileFault(path, where, "it is a Git LFS pointer instead of the data", "fetch the data with git lfs pull")
    content = decompressed(content, path, where) if compressed else content
    if content.startswith(b"\x1f\x8b"):
        problem = "it is compressed twice with gzip" if compressed else "it is compressed with gzip"
        raise FileFault(path, where, problem, "decompress it once" if compressed else "let its name end in .gz")
    columns, untyped = FORMATS[suffix](content, path, where)
    return Table(str(path), _by_name(columns, str(path), where), untyped=untyped)


def _by_name(columns: Columns, source: str, where: str) -> dict[str, list[Any]]:
    """Put columns into a dictionary; blanks before and after a name are dropped.

    Raises:
        FileFault: Two columns have the same name.
    """
    named: dict[str, list[Any]] = {}
    for name, values in columns:
        if name.strip() in named:
            listed = ", ".join(shown(other) for other, _ in columns[:50])
            fix = f"rename one of the columns {listed}"
            raise FileFault(source, where, f"two columns have the same name, {shown(name.strip())}", fix)
        named[name.strip()] = values
    return named


def _from_hub(spec: TableSpec, where: str) -> Table:
    import datasets

    source = "/".join(part for part in (spec.hub, spec.name, spec.split) if part)
    try:
        dataset = datasets.load_dataset(str(spec.hub), spec.name, split=spec.split)
    except Exception as error:  # the hub, the network and the files of the data set raise many kinds of errors
        reason = error_text(error, 300)
        fix = "check hub, name and split, and the network connection, or give a file"
        raise InputError(where, f"cannot load {source} ({type(error).__name__}: {reason})", fix) from error
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(where, f"{source} has several splits", "name one of them, such as split: train")
    names = {
        column.strip(): feature.names
        for column, feature in dataset.features.items()
        if isinstance(feature, datasets.ClassLabel)
    }
    columns: Sequence[tuple[str, list[Any]]] = [(name, list(dataset[name])) for name in dataset.column_names]
    return Table(source, _by_name(columns, source, where), class_names=names)
