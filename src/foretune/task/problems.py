"""Collects all mistakes in an input and reports them in one message, in the user's words instead of the parser's."""

import difflib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails, PydanticCustomError

from foretune.errors import InputError, shortened

MOST_LISTED = 10  # problems that one message lists
LONGEST = 250  # characters of a listed problem
WHAT_TO_WRITE = {
    "string_type": "text, in quotes if it looks like something else",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "list_type": "a list, such as [a, b]",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
}
ALIASES = {  # names that people use for a key or a value, without blanks, dashes and underscores
    "rank": "r",
    "lorar": "r",
    "alpha": "lora_alpha",
    "dropout": "lora_dropout",
    "modules": "target_modules",
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "batchsize": "per_device_train_batch_size",
    "trainbatchsize": "per_device_train_batch_size",
    "optimizer": "optim",
    "scheduler": "lr_scheduler_type",
    "evaluationstrategy": "eval_strategy",
    "warmupratio": "warmup_steps",
    "adam": "adamw_torch",
    "adamw": "adamw_torch",
    "adamwhf": "adamw_torch",
    "fp32": "float32",
    "fp16": "float16",
    "bf16": "bfloat16",
    "validation": "eval",
    "test": "eval",
    "nameorpath": "path",
    "maxlen": "max_length",
}
BOUNDS = {
    "greater_than": ("gt", "a number above"),
    "greater_than_equal": ("ge", "a number of at least"),
    "less_than": ("lt", "a number below"),
    "less_than_equal": ("le", "a number of at most"),
}


@dataclass(frozen=True)
class Problem:
    """One mistake in an input.

    Attributes:
        field: The dotted name of the field, such as ``peft.r``; empty if the mistake has no field.
        found: What is wrong, such as ``found 0``.
        fix: What to write instead.
    """

    field: str
    found: str
    fix: str


def raise_problems(source: str, problems: Sequence[Problem]) -> NoReturn:
    """Raise one error that lists the problems of a file.

    Args:
        source: Name of the file in messages.
        problems: One or more problems.

    Raises:
        InputError: Always.
    """
    if len(problems) == 1:
        (problem,) = problems
        raise InputError(f"{source}: {problem.field}" if problem.field else source, problem.found, problem.fix)
    parts = [shortened(f"({i}) {p.field}: {p.found}, {p.fix}", LONGEST) for i, p in enumerate(problems, start=1)]
    rest = len(problems) - MOST_LISTED
    listed = "; ".join(parts[:MOST_LISTED]) + (f"; and {rest} more" if rest > 0 else "")
    raise InputError(source, f"{len(problems)} problems: {listed}", "correct all of them")


def shown(value: Any) -> str:
    """A value for a message: shortened, and in quotes if it is text."""
    try:
        return shortened(repr(value), 60)
    except ValueError:  # Python refuses to write whole numbers of more than some thousand digits
        return "a whole number with thousands of digits"


def error_text(error: Exception, longest: int | None = None) -> str:
    """The message of another package's error, on one line and without the full stop at its end.

    Args:
        error: The error.
        longest: The most characters of its text; by default all are kept.

    Returns:
        The text; the name of the error's type if it has no text.
    """
    if isinstance(error, KeyError):  # its text is only the key
        return f"{error} is missing"
    return " ".join(str(error).split())[:longest].rstrip(".") or type(error).__name__


def nearest(name: str, valid: Iterable[str]) -> str:
    """Say what to write instead of an invalid name.

    Args:
        name: The invalid name.
        valid: The valid names.

    Returns:
        Advice for a message, such as ``write eval, the nearest of: train, eval``. It names the most similar valid name,
        if one is similar, and lists the first valid names.
    """
    names = list(valid)
    lowercase = {candidate.lower(): candidate for candidate in reversed(names)}
    wanted = str(name)[:100].lower()
    alias = ALIASES.get(re.sub(r"[\s_-]", "", wanted))
    close = [alias] if alias in names else difflib.get_close_matches(wanted, list(lowercase), n=1, cutoff=0.6)
    listed = ", ".join(shortened(valid_name, 60) for valid_name in names[:12]) + (
        f" and {len(names) - 12} more" if len(names) > 12 else ""
    )
    if close and close[0] is not None:
        best = lowercase[close[0].lower()]
        return f"write {best}, the nearest valid one" if len(names) > 12 else f"write {best}, the nearest of: {listed}"
    return f"write one of: {listed}"


def custom_error(found: str, fix: str) -> PydanticCustomError:
    """The error of a pydantic validator that words its message itself; the arguments are those of ``Problem``."""
    return PydanticCustomError("foretune", "see the context", {"found": found, "fix": fix})


def from_validation(error: ValidationError, root: type[BaseModel]) -> list[Problem]:
    """Translate pydantic's errors into problems with dotted fields and valid alternatives.

    Args:
        error: The errors of one validation.
        root: The model class that was validated.

    Returns:
        One problem for every error.
    """
    return [_translate(item, root) for item in error.errors(include_url=False)]


def _translate(item: ErrorDetails, root: type[BaseModel]) -> Problem:
    kind, location, context = item["type"], item["loc"], item.get("ctx", {})
    field, value = dotted(location), item["input"]
    if kind == "foretune":
        return Problem(field, str(context["found"]), str(context["fix"]))
    if kind == "missing":
        return Problem(field, "not given", f"add {location[-1]}")
    if kind == "extra_forbidden":
        valid = list(_model_at(root, location[:-1]).model_fields)
        return Problem(field, f"unknown key {shown(location[-1])}", nearest(str(location[-1]), valid))
    if kind == "literal_error":
        return Problem(field, f"found {shown(value)}", nearest(str(value), re.findall(r"'(\w+)'", context["expected"])))
    if kind in BOUNDS:
        key, words = BOUNDS[kind]
        return Problem(field, f"found {shown(value)}", f"write {words} {context[key]}")
    return Problem(field, f"found {shown(value)}", f"write {WHAT_TO_WRITE.get(kind, item['msg'])}")


def dotted(location: Iterable[str | int]) -> str:
    """Write a location such as ``("candidates", 0, "name")`` as ``candidates[0].name``."""
    text = ""
    for part in location:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def _model_at(root: type[BaseModel], location: Iterable[str | int]) -> type[BaseModel]:
    """The pydantic model at a location: field names lead from model to model, and list indices are skipped."""
    model = root
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            annotation = model.model_fields[part].annotation
            inner = [annotation, *getattr(annotation, "__args__", ())]
            model = next((t for t in inner if isinstance(t, type) and issubclass(t, BaseModel)), model)
    return model
