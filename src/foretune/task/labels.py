"""Reads labels: classes as indices into an ordered list of names, and regression targets as finite numbers."""

import math
import re
import unicodedata
from collections.abc import Callable
from typing import Any

from foretune.errors import InputError, shortened
from foretune.task.problems import nearest, shown
from foretune.task.tables import Table

LONGEST_NAME = 500  # characters of a class name
LARGEST_CLASS = 2**63 - 1  # the largest number that can be a class
LARGEST_TARGET = 1e18  # the square of a larger target is infinite in single precision
WHOLE_NUMBER = re.compile(r"\s*[+-]?\d{1,100}\s*", re.ASCII)
NUMBER = re.compile(
    r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*|\s*[+-]?(nan|inf(inity)?)\s*", re.ASCII | re.IGNORECASE
)
DECIMAL_COMMA = re.compile(r"\s*[+-]?\d+,\d+\s*", re.ASCII)


def column(table: Table, name: str, where: str) -> list[Any]:
    """The values of a column.

    Args:
        table: The rows.
        name: The column's name; blanks before and after it are ignored.
        where: The field that messages name.

    Returns:
        One value for every row.

    Raises:
        InputError: There is no such column; the message lists the columns.
    """
    if name.strip() not in table.columns:
        fix = nearest(name, table.columns) + ("; the first line names the columns" if table.untyped else "")
        raise InputError(where, f"there is no column {shown(name)} in {table.source}", fix)
    return table.columns[name.strip()]


def class_names(train: Table, name: str, where: str) -> tuple[str, ...]:
    """The classes of the training rows, in the order of their indices.

    The order is that of the hub if the hub names the classes. Otherwise classes that are whole numbers are sorted by
    value, and others by alphabet.

    Args:
        train: The training rows.
        name: The column of the labels.
        where: The field that messages name.

    Returns:
        The names of the classes.

    Raises:
        InputError: A label is missing or cannot be a class, or there is only one class.
    """
    keys = set(_class_keys(train, name, where))
    if name.strip() in train.class_names:
        return tuple(train.class_names[name.strip()])
    if len(keys) < 2:
        problem = f"all {len(train)} training labels are {next(iter(keys))!r}"
        raise InputError(where, problem, "give training rows of at least two classes, or set task: regression")
    try:
        return tuple(sorted(keys, key=lambda key: (int(key), key)))
    except ValueError:
        return tuple(sorted(keys))


def class_indices(table: Table, name: str, names: tuple[str, ...], where: str, cut: bool = False) -> list[int]:
    """Translate the label of every row into an index into ``names``.

    Args:
        table: The rows.
        name: The column of the labels.
        names: The classes of the training rows.
        where: The field that messages name.
        cut: Whether only the first rows of the training file are used.

    Returns:
        One index for every row.

    Raises:
        InputError: A label is missing or is not one of ``names``.
    """
    index = {key: i for i, key in enumerate(names)}
    indices = []
    for row, key in enumerate(_class_keys(table, name, where), start=1):
        if key not in index:
            listed = ", ".join(shortened(class_name, 60) for class_name in names[:12]) + (
                ", ..." if len(names) > 12 else ""
            )
            problem = f"{table.source}, row {row}: label {shown(key)} does not occur in the training rows"
            if similar := [other for other in names if normalised(other) == normalised(key)]:
                problem += f", but {shown(similar[0])} does"
            fix = f"use the training labels ({listed}), or add training rows with this label"
            raise InputError(where, problem, fix + (": raise data.train_samples, or shuffle the file" if cut else ""))
        indices.append(index[key])
    return indices


def without_invisible(label: str) -> str:
    """Drop invisible characters from a label, and write its accents in Unicode's standard form (NFKC)."""
    return "".join(letter for letter in unicodedata.normalize("NFKC", label) if unicodedata.category(letter) != "Cf")


HARD_TO_SEE: dict[str, Callable[[str], str]] = {  # kinds of differences, and the functions that remove them
    "invisible characters": without_invisible,
    "blanks": str.strip,
    "capital letters": str.casefold,
}


def normalised(label: str, keep: str = "") -> str:
    """Remove the differences between labels that are hard to see.

    Args:
        label: The label.
        keep: A key of ``HARD_TO_SEE``: this kind of difference is kept.

    Returns:
        A text that is equal for labels that look the same.
    """
    for kind, remove in HARD_TO_SEE.items():
        label = label if kind == keep else remove(label)
    return label


def targets(table: Table, name: str, where: str) -> list[float]:
    """Read the target of every row as a finite number.

    Args:
        table: The rows.
        name: The column of the targets.
        where: The field that messages name.

    Returns:
        One number for every row.

    Raises:
        InputError: A target is missing, not a number, not finite, or too large to be squared.
    """
    numbers = []
    for row, value in enumerate(column(table, name, where), start=1):
        number = _as_number(value, text=table.untyped)
        if number is None or not abs(number) <= LARGEST_TARGET:
            problem, fix = _target_problem(value, number)
            raise InputError(where, f"{table.source}, row {row}: the target is {problem}", fix)
        numbers.append(number)
    return numbers


def _target_problem(value: Any, number: float | None) -> tuple[str, str]:
    """Why a value cannot be a target, and what to write instead."""
    if number is not None and math.isfinite(number):
        return shown(value), f"scale the targets to at most {LARGEST_TARGET:.0e}"
    if value is None or (isinstance(value, str) and not value.strip()):
        return "missing", "give every row a target, or remove the row"
    if isinstance(value, str) and DECIMAL_COMMA.fullmatch(value):
        fix = f"write a decimal point, as in {value.strip().replace(',', '.')}, and nothing between the thousands"
        return f"{shown(value)}, with a decimal comma", fix
    if number is None and isinstance(value, str) and _as_number(value, text=True) is not None:
        return f"{shown(value)}, which is text", "write numbers without quotes"
    return shown(value), "give a finite number in every row, or set task: classification"


def _class_keys(table: Table, name: str, where: str) -> list[str]:
    """The class of every row as text; labels written as 1, 1.0, true or "1" are the same class.

    Raises:
        InputError: A label is missing or cannot be a class.
    """
    hub_names = table.class_names.get(name.strip())
    keys = []
    written = column(table, name, where)
    for row, value in enumerate(_typed(table, name, where), start=1):
        at = f"{table.source}, row {row}"
        if value is None or value != value or (isinstance(value, str) and not value.strip()):
            raise InputError(where, f"{at}: the label is missing", "give every row a label, or remove the row")
        if hub_names is not None:
            if not 0 <= value < len(hub_names):
                raise InputError(where, f"{at}: the label is hidden ({value})", "use a split whose labels are public")
            keys.append(hub_names[value])
        elif isinstance(value, str):
            keys.append(_class_name(value, where, at))
        elif not isinstance(value, int | float):
            raise InputError(where, f"{at}: found the label {shown(value)}", "give a whole number or a class name")
        elif abs(value) > LARGEST_CLASS:
            fix = "give smaller numbers or class names, or set task: regression"
            raise InputError(where, f"{at}: the label {shown(written[row - 1])} is too large for a class", fix)
        elif value != int(value):
            fix = "set task: regression in the model section, or give class names"
            raise InputError(where, f"{at}: the label {value} is a fraction", fix)
        else:
            keys.append(str(int(value)))
    return keys


def _class_name(value: str, where: str, at: str) -> str:
    if len(value) > LONGEST_NAME:
        problem = f"{at}: the label {shown(value)} has {len(value):,} characters"
        fix = f"name the column of the labels in data.label; a class name has at most {LONGEST_NAME} characters"
        raise InputError(where, problem, fix)
    try:
        value.encode()
    except UnicodeEncodeError as error:
        problem = f"{at}: the label {shown(value)} contains half a character (a lone surrogate)"
        raise InputError(where, problem, "write the whole character") from error
    return value


def _typed(table: Table, name: str, where: str) -> list[Any]:
    """A column's values; those of an untyped table become numbers if all of them are numbers."""
    values = column(table, name, where)
    for pattern, kind in ((WHOLE_NUMBER, int), (NUMBER, float)):
        if table.untyped and all(not value.strip() or pattern.fullmatch(value) for value in values):
            return [kind(value) if value.strip() else None for value in values]
    return values


def _as_number(value: Any, text: bool) -> float | None:
    """A value as a number, or None; ``text`` says whether text may be a number, as in an untyped table."""
    if isinstance(value, str):
        return float(value) if text and NUMBER.fullmatch(value) else None
    try:
        return float(value) if isinstance(value, int | float) else None
    except OverflowError:
        return None
