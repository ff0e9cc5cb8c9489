"""Expands a grid of candidates: lists of choices for keys become all their combinations."""

import itertools
import math
import re
from collections import Counter
from typing import Any

from foretune.task.arguments import as_number
from foretune.task.naming import LONGEST, abridged, layers_label, rate_label, short_hash, targets_label
from foretune.task.problems import custom_error, shown

LARGEST = 1000  # candidates
SECTIONS = ("peft", "training", "proximal")
FIX = (
    "write a list of candidates, or lists of choices such as {peft: {r: [4, 8]}, training: {num_train_epochs: [2, 4]}}"
)


def expand_grid(value: Any) -> Any:
    """Turn a grid into the list of its candidates, in which the last key varies fastest.

    Candidates are named after the keys that vary.

    Args:
        value: The ``candidates`` of a run file: a mapping is a grid.

    Returns:
        The list of candidates; a value that is not a mapping is returned unchanged.

    Raises:
        custom_error: The mapping is not a grid, or there are too many candidates.
    """
    if isinstance(value, list) and len(value) > LARGEST:
        raise custom_error(f"{len(value):,} candidates", f"write at most {LARGEST}")
    if not isinstance(value, dict):
        return value
    axes: list[tuple[str, str, list[Any]]] = []
    for section, keys in value.items():
        if section not in SECTIONS or not isinstance(keys, dict):
            raise custom_error(f"found {shown({section: keys})}", FIX)
        for key, choices in keys.items():
            if not isinstance(choices, list) or not choices:
                raise custom_error(f"{section}.{key} is {shown(choices)}, not a list of choices", FIX)
            for index, choice in enumerate(choices):
                if any(_same(choice, other) for other in choices[:index]):
                    raise custom_error(f"{section}.{key} lists {shown(choice)} twice", "write it once")
            axes.append((section, key, choices))
    size = math.prod(len(choices) for _, _, choices in axes)
    if size > LARGEST:
        raise custom_error(f"a grid of {size:,} candidates", f"write a grid of at most {LARGEST}")
    names, settings = [], []
    for combination in itertools.product(*(choices for _, _, choices in axes)):
        sections: dict[str, dict[str, Any]] = {section: {} for section in SECTIONS}
        labels = []
        for (section, key, choices), choice in zip(axes, combination, strict=True):
            sections[section][key] = choice
            if len(choices) > 1:
                labels.append(setting_label(key, choice))
        names.append("-".join(labels) or "base")
        settings.append(sections)
    distinct = _distinct_names(names, settings)
    return [{"name": name} | sections for name, sections in zip(distinct, settings, strict=True)]


def _distinct_names(names: list[str], settings: list[dict[str, Any]]) -> list[str]:
    """Shorten long names, and add a hash of the settings to names that are used more than once.

    Names are equal if, for example, learning rates differ only in their third digit.
    """
    counts = Counter(name.lower() for name in names)
    return [
        abridged(name) if counts[name.lower()] == 1 else f"{abridged(name, LONGEST - 9)}-{short_hash(repr(sections))}"
        for name, sections in zip(names, settings, strict=True)
    ]


def _same(one: Any, other: Any) -> bool:
    """Whether two choices are equal; numbers may be written as text."""
    numbers = as_number(one), as_number(other)
    return type(one) is type(other) and one == other if None in numbers else numbers[0] == numbers[1]


def setting_label(key: str, value: Any) -> str:
    """The part of a candidate's name for a key and its value, such as ``r8`` or ``weight_decay=0.01``.

    Args:
        key: The key.
        value: Its value, which may be invalid: the checks of values come later.

    Returns:
        A text that may be part of a folder's name.
    """
    if key == "target_modules" and isinstance(value, list | str) and all(isinstance(name, str) for name in value):
        return targets_label(value)
    if key == "layers_to_transform" and value is None:
        return "all-layers"
    if key == "layers_to_transform" and isinstance(value, int):
        return layers_label(value)
    if key == "layers_to_transform" and isinstance(value, list) and value and all(isinstance(n, int) for n in value):
        return layers_label(value)
    if key == "learning_rate" and (number := as_number(value)) is not None and math.isfinite(number):
        return f"lr{rate_label(number)}"
    text = f"r{value}" if key == "r" else f"{key}={value}"
    return re.sub(r"[^A-Za-z0-9_.+=,-]+", "_", text)
