"""Splits as tables: rows from files and from the hub, under columns of different names."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.task.config import TableSpec
from foretune.task.files import FileFault, read_file, unpacked
from foretune.task.formats import FORMATS, Columns
from foretune.task.problems import said, shown

SUFFIXES = tuple(FORMATS)
FIX = "give a jsonl, json, csv, tsv or parquet file; relative paths start at the folder of the YAML file"


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
    """The rows of a file, read as its suffix says; ``.gz`` may follow where it is text.

    Raises:
        InputError: It has another suffix.
        FileFault: It is not what its suffix says.
    """
    packed = path.suffix.lower() == ".gz"
    suffix = Path(path.stem).suffix.lower() if packed else path.suffix.lower()
    if suffix not in FORMATS or (packed and suffix == ".parquet"):
        found = f"{path} has the suffix {path.suffix!r}" if path.suffix else f"{path} has no suffix"
        fix = f"give a file that ends in {', '.join(SUFFIXES)}, or one of the text formats with .gz after it"
        raise InputError(where, found, fix)
    content = read_file(path, where, FIX)
    if content.startswith(b"version https://git-lfs"):
        raise FileFault(path, where, "it only points to the data (Git LFS)", "fetch the data with git lfs pull")
    content = unpacked(content, path, where) if packed else content
    if content.startswith(b"\x1f\x8b"):
        raise FileFault(path, where, "it is compressed with gzip", "unpack it" if packed else "let its name end in .gz")
    columns, untyped = FORMATS[suffix](content, path, where)
    return Table(str(path), _by_name(columns, str(path), where), untyped=untyped)


def _by_name(columns: Columns, source: str, where: str) -> dict[str, list[Any]]:
    """Columns by their names, in which blanks before and after make no difference.

    Raises:
        FileFault: Two have the same name.
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
    except Exception as error:  # the hub, the network and the data set's own files each fail in their own way
        reason = said(error)[:300].rstrip(".")
        fix = "check hub, name and split, and the connection; or give a file"
        raise InputError(where, f"cannot load {source} ({type(error).__name__}: {reason})", fix) from error
    if not isinstance(dataset, datasets.Dataset):
        raise InputError(where, f"{source} is not one table", "name one split, such as split: train")
    names = {n.strip(): f.names for n, f in dataset.features.items() if isinstance(f, datasets.ClassLabel)}
    columns: Sequence[tuple[str, list[Any]]] = [(name, list(dataset[name])) for name in dataset.column_names]
    return Table(source, _by_name(columns, source, where), class_names=names)
