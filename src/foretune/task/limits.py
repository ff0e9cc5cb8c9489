"""Checks the values of ``peft`` and ``training`` keys that have the right type."""

import re
from collections.abc import Callable
from dataclasses import Field
from typing import Any

from foretune.task.problems import nearest, shown

LARGEST = 3e38  # larger numbers are infinite in single precision
LARGEST_WHOLE = 2**63 - 1  # the largest integer of 64 bits

Check = Callable[[Any], str]  # returns what to write instead of a value, or "" if the value is valid


def _number(low: int | float, high: int | float = LARGEST, *, above: bool = False, below: bool = False) -> Check:
    """A check for numbers from ``low`` to ``high``; ``above`` excludes ``low``, and ``below`` excludes ``high``."""

    def check(value: Any) -> str:
        if below and not low <= value < high:
            return f"write a number from {low:,} to {high:,}, without {high:,} itself"
        if value < low or (above and value == low):
            return f"write a number {'above' if above else 'of at least'} {low:,}"
        return "" if value <= high else f"write a number of at most {high:,}"

    return check


def _regular_expressions(value: Any) -> str:
    """Check that a regular expression, or every one of several, can be compiled by Python's ``re``."""
    for pattern in [value] if isinstance(value, str) else value:
        try:
            re.compile(pattern)
        except re.error as error:
            return f"correct the regular expression {shown(pattern)}: {error.msg} at position {error.pos}"
        except (OverflowError, RecursionError):
            return f"write a shorter regular expression than {shown(pattern)}"
    return ""


def _targets(value: Any) -> str:
    """Check target modules: a list of names, a regular expression, or ``all-linear``."""
    if not isinstance(value, str):
        return _module_names(value)
    if not value.strip():
        return _module_names([])
    if value.lower().replace("_", "-") == "all-linear":
        return "" if value.lower() == "all-linear" else "write all-linear"
    if "," in value and re.fullmatch(r"[\w.\s,]+", value):  # no module has a comma in its name
        return f"write a list: [{', '.join(name.strip() for name in value.split(',') if name.strip())}]"
    return _regular_expressions(value)


def _module_names(value: list[str]) -> str:
    valid = value and all(name.strip() for name in value)
    return "" if valid else "write the names of the modules to adapt, such as [query, value], or all-linear"


def _pattern_numbers(check: Check, *kinds: type) -> Check:
    """A check for mappings from patterns of module names to numbers; ``check`` is applied to every number."""

    def check_all(value: Any) -> str:
        for pattern, number in value.items():
            valid = isinstance(number, kinds) and not isinstance(number, bool)
            if fix := check(number) if valid else f"write a {'number' if float in kinds else 'whole number'}":
                return f"{fix} for {shown(pattern)}"
        return _regular_expressions(map(str, value))

    return check_all


def _layers(value: Any) -> str:
    valid = value >= 0 if isinstance(value, int) else len(value) > 0 and min(value) >= 0
    return "" if valid else "write layer numbers counted from 0, such as [4, 5]"


def _steps(value: int) -> str:
    return "" if value == -1 or 1 <= value <= 10**9 else "write the number of steps, or -1 to use num_train_epochs"


def _seed(value: int) -> str:
    return "" if 0 <= value < 2**32 else "write a whole number from 0 to 4294967295"


def _task_type(value: Any) -> str:
    valid = str(getattr(value, "value", value)) == "SEQ_CLS"
    return "" if valid else "leave it out: foretune uses SEQ_CLS, for classification and regression"


TRAINING_CHECKS: dict[str, Check] = {
    "learning_rate": _number(0, 1000, above=True),
    "num_train_epochs": _number(0, 10**6, above=True),
    "max_steps": _steps,
    "per_device_train_batch_size": _number(1, 10**6),
    "per_device_eval_batch_size": _number(1, 10**6),
    "gradient_accumulation_steps": _number(1, 10**6),
    "weight_decay": _number(0, 1000),
    "warmup_steps": _number(0, 10**9),
    "adam_beta1": _number(0, 1, below=True),
    "adam_beta2": _number(0, 1, below=True),
    "adam_epsilon": _number(0, above=True),
    "label_smoothing_factor": _number(0, 1, below=True),
    "dataloader_num_workers": _number(0, 1000),
    "dataloader_prefetch_factor": _number(1, 10**6),
    "local_rank": _number(-1, 10**6),
    "seed": _seed,
    "data_seed": _seed,
}
PEFT_CHECKS: dict[str, Check] = {
    "r": _number(1, 10**5),
    "lora_alpha": _number(0, 10**6, above=True),
    "lora_dropout": _number(0, 1, below=True),
    "target_modules": _targets,
    "modules_to_save": lambda value: "" if all(name.strip() for name in value) else "write the names of modules",
    "exclude_modules": lambda value: _regular_expressions(value) if isinstance(value, str) else "",
    "layers_pattern": _regular_expressions,
    "rank_pattern": _pattern_numbers(_number(1, 10**5), int),
    "alpha_pattern": _pattern_numbers(_number(0, 10**6, above=True), int, float),
    "layers_to_transform": _layers,
    "task_type": _task_type,
}


def correction(value: Any, key: Field[Any], checks: dict[str, Check]) -> str:
    """Say what to write instead of a value that has the right type but is not valid.

    Args:
        value: The value of a key.
        key: The key, as a field of its class. If the key has no check and its value is a number, it is a count or a
            size, which cannot be negative.
        checks: The checks for the keys of that class.

    Returns:
        What to write instead, or ``""`` if the value is valid.
    """
    if value is None:
        return ""
    if key.name in checks:
        return checks[key.name](value)
    if value not in key.metadata.get("choices", (value,)):
        return nearest(str(value), key.metadata["choices"])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return ""
    return _number(0, LARGEST_WHOLE if isinstance(value, int) else LARGEST)(value)
