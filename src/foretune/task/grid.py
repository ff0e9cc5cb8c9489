"""Candidates as a grid: choices of keys stand for all their combinations."""

import itertools
import math
import re
from typing import Any

from foretune.task.arguments import as_number
from foretune.task.naming import label, short, span
from foretune.task.problems import custom, shown

LARGEST = 1000  # candidates
SECTIONS = ("peft", "training", "proximal")
FIX = "write a list of candidates, or choices such as {peft: {r: [4, 8]}, training: {num_train_epochs: [2, 4]}}"


def expanded(value: Any) -> Any:
    """The list of candidates that a grid stands for, the last key fastest, named by what varies; a list as it is.

    Raises:
        custom: It is no grid, or too large a one.
    """
    if not isinstance(value, dict):
        return value
    axes: list[tuple[str, str, list[Any]]] = []
    for section, keys in value.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            raise custom(f"found {shown({section: keys})}", FIX)
        for key, choices in keys.items():
            if not isinstance(choices, list) or not choices:
                raise custom(f"{section}.{key} is {shown(choices)}, not a list of choices", FIX)
            axes.append((section, key, choices))
    size = math.prod(len(choices) for _, _, choices in axes)
    if size > LARGEST:
        raise custom(f"a grid of {size:,} candidates", f"write one of {LARGEST} at most")
    found = []
    for chosen in itertools.product(*(choices for _, _, choices in axes)):
        made: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        varied = []
        for (section, key, choices), choice in zip(axes, chosen, strict=True):
            made[section][key] = choice
            if len(choices) > 1:
                varied.append(setting(key, choice))
        found.append({"name": "-".join(varied) or "base"} | made)
    return found


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
