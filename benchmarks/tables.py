"""Result files that stay small: rows under one header instead of a dict per row, and numbers no longer than needed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foretune.results import write_json, write_text

Row = dict[str, Any]


def to_table(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Rows as ``columns`` (names) and ``rows`` (values in that order); a value that a row does not have is None.

    >>> to_table([{"seed": 0, "loss": 0.5}, {"seed": 1}])
    {'columns': ['seed', 'loss'], 'rows': [[0, 0.5], [1, None]]}
    """
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return {"columns": columns, "rows": [[row.get(key) for key in columns] for row in rows]}


def from_table(table: Mapping[str, Sequence[Any]]) -> list[Row]:
    """The rows of ``to_table`` as dicts.

    >>> from_table({"columns": ["seed", "loss"], "rows": [[0, 0.5]]})
    [{'seed': 0, 'loss': 0.5}]
    """
    return [dict(zip(table["columns"], values, strict=True)) for values in table["rows"]]


def rounded(value: Any, digits: int = 6) -> Any:
    """A JSON value whose floating-point numbers have at most so many significant digits.

    >>> rounded({"loss": 0.123456789, "steps": 1234567})
    {'loss': 0.123457, 'steps': 1234567}
    """
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def write_result(path: Path, content: dict[str, Any]) -> None:
    """Write a result file with its checksum; lists and objects that contain no others take one line each."""
    write_json(path, content)
    write_text(path, _laid_out(json.loads(path.read_text(encoding="utf-8"))) + "\n")


def _laid_out(value: Any, indent: str = "") -> str:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    if not any(isinstance(item, dict | list) for item in inner):
        return json.dumps(value, ensure_ascii=False)
    deeper = indent + " "
    if isinstance(value, dict):
        items = [f"{json.dumps(key)}: {_laid_out(item, deeper)}" for key, item in value.items()]
        opening, closing = "{", "}"
    else:
        items = [_laid_out(item, deeper) for item in value]
        opening, closing = "[", "]"
    lines = f",\n{deeper}".join(items)
    return f"{opening}\n{deeper}{lines}\n{indent}{closing}"
