"""Helpers that write wrong inputs into a folder."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import tiny_rows, write_jsonl, write_tiny_run


@dataclass(frozen=True)
class BadInput:
    """A wrong input: ``write`` writes it into a folder and returns the path for foretune."""

    name: str
    write: Callable[[Path], Path]
    fragments: tuple[str, ...]


def run(**overrides: Any) -> Callable[[Path], Path]:
    return lambda folder: write_tiny_run(folder, **overrides)


def yaml_bytes(content: bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_tiny_run(folder)
        path.write_bytes(content)
        return path

    return write


def train_bytes(content: bytes, name: str = "train.jsonl", **overrides: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_tiny_run(folder, **{"data": {"train": name}} | overrides)
        (folder / name).write_bytes(content)
        return path

    return write


def train_rows(change: Callable[[list[dict[str, Any]]], Any], **overrides: Any) -> Callable[[Path], Path]:
    """The default run, with training rows that ``change`` has edited in place."""

    def write(folder: Path) -> Path:
        path = write_tiny_run(folder, **overrides)
        rows = tiny_rows(12, seed=1)
        change(rows)
        write_jsonl(folder / "train.jsonl", rows)
        return path

    return write


def set_row(index: int, **values: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda rows: rows[index].update(values)


def relabel(label: Callable[[dict[str, Any]], Any]) -> Callable[[list[dict[str, Any]]], None]:
    def change(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            row["label"] = label(row)

    return change


def model_folder(change: Callable[[Path], Any], **overrides: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_tiny_run(folder, **overrides)
        change(folder / "model")
        return path

    return write


def eval_label(label: Any) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        path = write_tiny_run(folder)
        rows = tiny_rows(4, seed=2)
        rows[2]["label"] = label
        write_jsonl(folder / "eval.jsonl", rows)
        return path

    return write


def fractions(row: dict[str, Any]) -> float:
    return float(row["label"]) + 0.25


ROW = b'{"text": "good film", "label": 1}\n'
REGRESSION = {"task": "regression"}


def yaml_edit(old: str, new: str) -> Callable[[Path], Path]:
    """The default run file, with a part of its text replaced."""

    def write(folder: Path) -> Path:
        path = write_tiny_run(folder)
        text = path.read_text(encoding="utf-8")
        assert old in text
        path.write_text(text.replace(old, new, 1), encoding="utf-8")
        return path

    return write
