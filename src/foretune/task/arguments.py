"""Checks the keys and types of the ``peft`` and ``training`` sections.

They belong to peft's ``LoraConfig`` and to ``transformers.TrainingArguments``. The valid keys and their types are read
from these classes, so that they fit the installed versions.
"""

import dataclasses
import math
import re
import types
import warnings
from enum import Enum
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from peft import LoraConfig
from transformers import TrainingArguments

from foretune.task.limits import PEFT_CHECKS, TRAINING_CHECKS, Check, correction
from foretune.task.problems import Problem, nearest, shown

PEFT_TYPES = ("lora",)
DESCRIPTIVE = (  # keys that only describe a saved adapter
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
)
WIDER_TYPES = {"lora_alpha": float, "init_lora_weights": bool | str}  # peft accepts more than its annotations say
EXPONENT = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def check_peft(values: dict[str, Any], field: str) -> tuple[dict[str, Any], list[Problem], list[str]]:
    """Check a ``peft`` section, which may be a pasted ``adapter_config.json``.

    Args:
        values: The section.
        field: Name of the section in messages.

    Returns:
        The section, in which text that is a number has become a number, and nulls have become peft's defaults; the
        problems; and notes on the keys that were left out.
    """
    values, pasted = dict(values), "peft_type" in values
    for key in ("type", "peft_type"):
        kind = values.pop(key, None)
        if kind is not None and str(kind).lower() not in PEFT_TYPES:
            fix = f"write {' or '.join(PEFT_TYPES)}: foretune supports no other adapters"
            return {}, [Problem(f"{field}.{key}", f"found {shown(kind)}", fix)], []
    defaults, notes = LoraConfig(), []
    described = {key: values.pop(key) for key in DESCRIPTIVE if key in values}
    if ignored := ", ".join(key for key, value in described.items() if value):
        notes.append(f"{field}: keys that only describe a saved adapter are ignored ({ignored})")
    if newer := [key for key, value in values.items() if value is None and pasted and not hasattr(defaults, key)]:
        notes.append(f"{field}: keys that this version of peft does not have are ignored ({', '.join(newer)})")
    values = {
        key: getattr(defaults, key, None) if value is None else value
        for key, value in values.items()
        if key not in newer
    }
    checked, problems = _check(values, LoraConfig, PEFT_CHECKS, field, extra=("type",))
    return checked, problems, notes


def check_training(values: dict[str, Any], field: str) -> tuple[dict[str, Any], list[Problem]]:
    """Check a ``training`` section.

    Args:
        values: The section.
        field: Name of the section in messages.

    Returns:
        The section, in which text that is a number has become a number, and the problems.
    """
    return _check(values, TrainingArguments, TRAINING_CHECKS, field)


def build_lora(values: dict[str, Any]) -> LoraConfig:
    """Build the ``LoraConfig`` of a checked ``peft`` section, for sequence classification."""
    keys = {key: value for key, value in values.items() if key != "task_type"}
    with warnings.catch_warnings(action="ignore"):
        return LoraConfig(task_type="SEQ_CLS", **keys)


def _check(
    values: dict[str, Any], owner: type, checks: dict[str, Check], field: str, extra: tuple[str, ...] = ()
) -> tuple[dict[str, Any], list[Problem]]:
    """Check keys and values against the class that they belong to; ``extra`` are further keys to suggest."""
    hints = get_type_hints(owner)
    fields = {item.name: item for item in dataclasses.fields(owner)}
    valid = [name for name, item in fields.items() if item.init and not name.startswith("_")]
    checked: dict[str, Any] = {}
    problems = []
    for key, value in values.items():
        where = f"{field}.{key}"
        if key not in valid:
            problem = f"unknown key {shown(key)}, which {owner.__name__} does not have"
            problems.append(Problem(where, problem, nearest(str(key), [*extra, *valid])))
            continue
        hint = WIDER_TYPES.get(key, hints[key])
        fits, value = _coerce(value, hint)
        if not fits:
            problems.append(Problem(where, f"found {shown(value)}", _type_advice(value, hint)))
        elif fix := correction(value, fields[key], checks):
            problems.append(Problem(where, f"found {shown(value)}", fix))
        checked[key] = value
    return checked, problems


def _options(hint: Any) -> list[Any]:
    """The types that an annotation allows; a union allows several."""
    union = get_origin(hint) in {Union, types.UnionType}
    return [option for arg in get_args(hint) for option in _options(arg)] if union else [hint]


def _coerce(value: Any, hint: Any) -> tuple[bool, Any]:
    """Check whether a value fits an annotation, and convert it to the type that the class expects.

    Two properties of YAML 1.1 are corrected: it reads ``1e-3`` as text, and ``no`` as false.
    """
    options = _options(hint)
    enums = [option for option in options if isinstance(option, type) and issubclass(option, Enum)]
    if enums:
        words = {str(member.value) for option in enums for member in option}
        value = "no" if value is False and "no" in words else value
        return (isinstance(value, str) and value in words) or (value is None and type(None) in options), value
    if value is False and bool not in options and str in options and not {int, float} & set(options):
        return True, "no"
    if float in options and int not in options and isinstance(value, int | float | str) and not isinstance(value, bool):
        number = as_number(value)
        if number is not None:
            return math.isfinite(number), value if isinstance(value, int) else number
        value = math.inf if isinstance(value, int) else value  # a whole number that is too large for a float
    if isinstance(value, dict):
        value = {key: _with_numbers(item) for key, item in value.items()}
    for option in options:
        if _fits(value, option):
            return True, value
    return False, value


def _fits(value: Any, option: Any) -> bool:
    """Whether a value has a type; the items of lists are checked too."""
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


def _with_numbers(value: Any) -> Any:
    """Turn text in a mapping into a number where YAML 1.2 would read a number, such as ``1e-3``."""
    if isinstance(value, dict):
        return {key: _with_numbers(item) for key, item in value.items()}
    return float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value


def as_number(value: Any) -> float | None:
    """A value as a number; text may be a number, because YAML 1.1 reads ``1e-3`` as text. None for other values."""
    try:
        return float(value) if isinstance(value, int | float | str) else None
    except (ValueError, OverflowError):
        return None


def _type_advice(value: Any, hint: Any) -> str:
    """What to write instead of a value that does not fit its annotation."""
    options = [option for option in _options(hint) if option is not type(None)]
    words = [str(m.value) for o in options if isinstance(o, type) and issubclass(o, Enum) for m in o]
    words += [str(word) for o in options if get_origin(o) is Literal for word in get_args(o)]
    if words:
        return nearest(str(value), words)
    type_names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", dict: "a mapping"}
    return "write " + " or ".join(
        dict.fromkeys(type_names.get(get_origin(o) or o, "a list" if get_origin(o) else "a mapping") for o in options)
    )
