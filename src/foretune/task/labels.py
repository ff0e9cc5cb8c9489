"""Labels: class names in a fixed order, or finite numbers."""

import math
from typing import Any

from foretune.errors import InputError
from foretune.task.problems import nearest, shown
from foretune.task.tables import Table


def column(table: Table, name: str, where: str) -> list[Any]:
    """A column by name.

    Raises:
        InputError: There is no such column; the message lists those there are.
    """
    if name not in table.columns:
        raise InputError(where, f"there is no column {name!r} in {table.source}", nearest(name, table.columns))
    return table.columns[name]


def class_names(train: Table, name: str, where: str) -> tuple[str, ...]:
    """The classes of the training rows: in the hub's order if it has one, else by number or alphabet.

    Raises:
        InputError: A label is missing or cannot be a class, or there is only one class.
    """
    keys = set(_class_keys(train, name, where))
    if name in train.class_names:
        return tuple(train.class_names[name])
    if len(keys) < 2:
        found = f"all {len(train)} training labels are {next(iter(keys))!r}"
        raise InputError(where, found, "give training rows of at least two classes, or set task: regression")
    try:
        return tuple(sorted(keys, key=lambda key: (int(key), key)))
    except ValueError:
        return tuple(sorted(keys))


def class_indices(table: Table, name: str, names: tuple[str, ...], where: str) -> list[int]:
    """Each row's class as an index into ``names``.

    Raises:
        InputError: A label is missing or is not one of ``names``.
    """
    index = {key: i for i, key in enumerate(names)}
    indices = []
    for row, key in enumerate(_class_keys(table, name, where), start=1):
        if key not in index:
            known = ", ".join(names[:12]) + (", ..." if len(names) > 12 else "")
            found = f"{table.source}, row {row}: label {key!r} does not occur in the training rows"
            raise InputError(where, found, f"use the training labels ({known}), or add training rows with it")
        indices.append(index[key])
    return indices


def targets(table: Table, name: str, where: str) -> list[float]:
    """Each row's target as a finite number.

    Raises:
        InputError: A target is missing, not a number, or not finite.
    """
    numbers = []
    for row, value in enumerate(column(table, name, where), start=1):
        number = _as_number(value, text=table.untyped)
        if number is None or not math.isfinite(number):
            found = f"{table.source}, row {row}: the target is {shown(value)}"
            raise InputError(where, found, "give a finite number in every row, or set task: classification")
        numbers.append(number)
    return numbers


def _class_keys(table: Table, name: str, where: str) -> list[str]:
    # Labels as text that is equal for equal labels, whether they were written as 1, 1.0, true or "1".
    hub_names = table.class_names.get(name)
    keys = []
    for row, value in enumerate(_typed(table, name, where), start=1):
        at = f"{table.source}, row {row}"
        if value is None or value == "" or value != value:
            raise InputError(where, f"{at}: the label is missing", "give every row a label, or remove the row")
        if hub_names is not None:
            if not 0 <= value < len(hub_names):
                raise InputError(where, f"{at}: the label is hidden ({value})", "use a split with public labels")
            keys.append(hub_names[value])
        elif isinstance(value, str):
            keys.append(value)
        elif isinstance(value, float) and not value.is_integer():
            fix = "set task: regression in the model section, or give class names"
            raise InputError(where, f"{at}: the label {value} is a fraction", fix)
        elif isinstance(value, int | float):
            keys.append(str(int(value)))
        else:
            raise InputError(where, f"{at}: found the label {shown(value)}", "give a whole number or a class name")
    return keys


def _typed(table: Table, name: str, where: str) -> list[Any]:
    """A column's values; where all are text, numbers if every one of them is one."""
    values = column(table, name, where)
    if table.untyped:
        for kind in (int, float):
            try:
                return [None if value == "" else kind(value) for value in values]
            except ValueError:
                continue
    return values


def _as_number(value: Any, text: bool) -> float | None:
    if isinstance(value, str) and not text:
        return None
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None
