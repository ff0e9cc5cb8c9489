"""Candidates as a grid: choices of keys stand for all their combinations."""

import itertools
import math
import re
from collections import Counter
from typing import Any

from foretune.task.arguments import as_number
from foretune.task.naming import LONGEST, abridged, digest, label, short, span
from foretune.task.problems import custom, shown

LARGEST = 1000  # candidates
SECTIONS = ("peft", "training", "proximal")
FIX = "write a list of candidates, or choices such as {peft: {r: [4, 8]}, training: {num_train_epochs: [2, 4]}}"


def expanded(value: Any) -> Any:
    """The list of candidates that a grid stands for, the last key fastest, named by what varies; a list as it is.

    Raises:
        custom: It is no grid, or has too many candidates.
    """
    if isinstance(value, list) and len(value) > LARGEST:
        raise custom(f"{len(value):,} candidates", f"write {LARGEST} at most")
    if not isinstance(value, dict):
        return value
    axes: list[tuple[str, str, list[Any]]] = []
    for section, keys in value.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            raise custom(f"found {shown({section: keys})}", FIX)
        for key, choices in keys.items():
            if not isinstance(choices, list) or not choices:
                raise custom(f"{section}.{key} is {shown(choices)}, not a list of choices", FIX)
            for index, choice in enumerate(choices):
                if any(_same(choice, other) for other in choices[:index]):
                    raise custom(f"{section}.{key} lists {shown(choice)} twice", "write every choice once")
            axes.append((section, key, choices))
    size = math.prod(len(choices) for _, _, choices in axes)
    if size > LARGEST:
        raise custom(f"a grid of {size:,} candidates", f"write one of {LARGEST} at most")
    names, found = [], []
    for chosen in itertools.product(*(choices for _, _, choices in axes)):
        made: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        varied = []
        for (section, key, choices), choice in zip(axes, chosen, strict=True):
            made[section][key] = choice
            if len(choices) > 1:
                varied.append(setting(key, choice))
        names.append("-".join(varied) or "base")
        found.append(made)
    return [{"name": name} | made for name, made in zip(_distinct(names, found), found, strict=True)]


def _distinct(names: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """The names, short enough; equal ones, as of learning rates that differ in their third digit, with a hash."""
    times = Counter(name.lower() for name in names)
    return [
        abridged(name) if times[name.lower()] == 1 else f"{abridged(name, LONGEST - 9)}-{digest(repr(made))}"
        for name, made in zip(names, settings, strict=True)
    ]


def _same(one: Any, other: Any) -> bool:
    numbers = as_number(one), as_number(other)
    return type(one) is type(other) and one == other if None in numbers else numbers[0] == numbers[1]


def setting(key: str, value: Any) -> str:
    """A key and its value in a name, such as ``r8`` or ``weight_decay=0.01``; values that do not fit are named too."""
    if key == "target_modules" and isinstance(value, list | str) and all(isinstance(each, str) for each in value):
        return label(value)
    if key == "layers_to_transform" and value is None:
        return "all-layers"
    if key == "layers_to_transform" and isinstance(value, int):
        return span(value)
    if key == "layers_to_transform" and isinstance(value, list) and value and all(isinstance(n, int) for n in value):
        return span(value)
    if key == "learning_rate" and (number := as_number(value)) is not None and math.isfinite(number):
        return f"lr{short(number)}"
    text = f"r{value}" if key == "r" else f"{key}={value}"
    return re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", text)
