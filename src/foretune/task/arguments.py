"""Checks on the keys that belong to peft's ``LoraConfig`` and to ``transformers.TrainingArguments``.

The valid keys and their types are read from those classes, so that a new version of either brings its own.
"""

import dataclasses
import math
import types
import warnings
from collections.abc import Callable
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import LoraConfig
from transformers import TrainingArguments

from foretune.task.problems import Problem, nearest, shown

PEFT_TYPES = ("lora",)

Check = tuple[Callable[[Any], bool], str]


def _at_least(low: int) -> Check:
    return lambda value: value >= low, f"write a number of at least {low}"


def _above(low: int) -> Check:
    return lambda value: value > low, f"write a number above {low}"


def _within(low: int, high: int) -> Check:
    return lambda value: low <= value < high, f"write a number from {low} up to, not including, {high}"


SEED: Check = (lambda value: 0 <= value < 2**32, "write a whole number from 0 to 4294967295")

TRAINING_CHECKS: dict[str, Check] = {
    "learning_rate": _above(0),
    "num_train_epochs": _above(0),
    "max_steps": (
        lambda value: value == -1 or value >= 1,
        "write the number of steps, or -1 to count epochs",
    ),
    "per_device_train_batch_size": _at_least(1),
    "per_device_eval_batch_size": _at_least(1),
    "gradient_accumulation_steps": _at_least(1),
    "weight_decay": _at_least(0),
    "warmup_steps": _at_least(0),
    "adam_beta1": _within(0, 1),
    "adam_beta2": _within(0, 1),
    "adam_epsilon": _above(0),
    "max_grad_norm": _at_least(0),
    "label_smoothing_factor": _within(0, 1),
    "seed": SEED,
    "data_seed": SEED,
}
PEFT_CHECKS: dict[str, Check] = {
    "r": _at_least(1),
    "lora_alpha": _above(0),
    "lora_dropout": _within(0, 1),
    "target_modules": (
        lambda value: len(value) > 0 and all(value),
        "write the names of the modules to adapt, such as [query, value], or all-linear",
    ),
    "layers_to_transform": (
        lambda value: value >= 0 if isinstance(value, int) else len(value) > 0 and min(value) >= 0,
        "write layer numbers counted from 0, such as [4, 5]",
    ),
    "task_type": (
        lambda value: str(getattr(value, "value", value)) == "SEQ_CLS",
        "leave it out: foretune classifies and regresses, so it is SEQ_CLS",
    ),
}


def check_peft(values: dict[str, Any], field: str) -> tuple[dict[str, Any], list[Problem]]:
    """Check a ``peft`` section, ``field`` in messages; returns it with numbers given as text made numbers."""
    values = dict(values)
    kind = values.pop("type", "lora")
    if kind not in PEFT_TYPES:
        fix = f"write {' or '.join(PEFT_TYPES)}, the only kind that is supported"
        return {}, [Problem(f"{field}.type", f"found {shown(kind)}", fix)]
    checked, problems = _check(values, LoraConfig, PEFT_CHECKS, field, extra=("type",))
    return checked, problems


def check_training(values: dict[str, Any], field: str) -> tuple[dict[str, Any], list[Problem]]:
    """Check a ``training`` section, ``field`` in messages; returns it likewise."""
    return _check(values, TrainingArguments, TRAINING_CHECKS, field)


def build_lora(values: dict[str, Any]) -> LoraConfig:
    """The ``LoraConfig`` of a checked ``peft`` section, for sequence classification."""
    keys = {key: value for key, value in values.items() if key != "task_type"}
    with warnings.catch_warnings(action="ignore"):
        return LoraConfig(task_type="SEQ_CLS", **keys)


def build_problem(build: Callable[[dict[str, Any]], Any], values: dict[str, Any], field: str) -> list[Problem]:
    """What the class itself says against the combination of ``values``, if anything."""
    try:
        build(values)
    except (ValueError, TypeError, NotImplementedError, ImportError, OSError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        return [Problem(field, f"cannot be used together ({reason})", "change or remove the keys it names")]
    return []


def _check(
    values: dict[str, Any], owner: type, checks: dict[str, Check], field: str, extra: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    hints = get_type_hints(owner)
    valid = [item.name for item in dataclasses.fields(owner) if item.init and not item.name.startswith("_")]
    checked: dict[str, Any] = {}
    problems = []
    for key, value in values.items():
        where = f"{field}.{key}"
        if key not in valid:
            found = f"unknown key {shown(key)}, which {owner.__name__} does not have"
            problems.append(Problem(where, found, nearest(str(key), [*extra, *valid])))
            continue
        hint = float if key == "lora_alpha" else hints[key]  # peft says int and computes with any number
        fits, value = _coerce(value, hint)
        if not fits:
            problems.append(Problem(where, f"found {shown(value)}", _wanted(value, hint)))
        elif key in checks and value is not None and not checks[key][0](value):
            problems.append(Problem(where, f"found {shown(value)}", checks[key][1]))
        checked[key] = value
    return checked, problems


def _options(hint: Any) -> list[Any]:
    union = get_origin(hint) in {Union, types.UnionType}
    return [option for arg in get_args(hint) for option in _options(arg)] if union else [hint]


def _coerce(value: Any, hint: Any) -> tuple[bool, Any]:
    """Whether ``value`` fits the annotation, and the value as the class wants it.

    Two habits of YAML 1.1 are undone: ``1e-3`` arrives as text where a number is meant, and ``no`` as false
    where text is.
    """
    options = _options(hint)
    enums = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
    if enums:
        words = {str(member.value) for option in enums for member in option}
        value = "no" if value is False and "no" in words else value
        return (isinstance(value, str) and value in words) or (value is None and type(None) in options), value
    if value is False and bool not in options and str in options and not {int, float} & set(options):
        return True, "no"
    if float in options and int not in options and not isinstance(value, bool):
        number = as_number(value)
        if number is not None:
            return math.isfinite(number), value if isinstance(value, int) else number
    for option in options:
        if _fits(value, option):
            return True, value
    return False, value


def _fits(value: Any, option: Any) -> bool:
    origin, args = get_origin(option), get_args(option)
    if option is Any:
        return True
    if option is None or option is type(None):
        return value is None
    if origin is Literal:
        return value in args or any("[" in str(arg) and str(value).startswith(str(arg).split("[")[0]) for arg in args)
    if origin in {list, tuple}:
        inner = args[0] if args else Any
        return isinstance(value, list) and all(any(_fits(item, o) for o in _options(inner)) for item in value)
    if origin is dict or option is dict:
        return isinstance(value, dict)
    if option is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if option is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if isinstance(option, type) and dataclasses.is_dataclass(option):
        return isinstance(value, dict)
    return isinstance(option, type) and isinstance(value, option)


def as_number(value: Any) -> float | None:
    """A number, also one given as text, as YAML 1.1 gives ``1e-3``; None where it is none."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _wanted(value: Any, hint: Any) -> str:
    options = [option for option in _options(hint) if option is not type(None)]
    words = [str(m.value) for o in options if isinstance(o, type) and issubclass(o, Enum) for m in o]
    words += [str(word) for o in options if get_origin(o) is Literal for word in get_args(o)]
    if words:
        return nearest(str(value), words)
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    return "write " + " or ".join(
        dict.fromkeys(names.get(get_origin(o) or o, "a list" if get_origin(o) else "a mapping") for o in options)
    )
