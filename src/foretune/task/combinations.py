"""Checks whether the keys of a section can be used together, by asking peft and transformers."""

import warnings
from collections.abc import Callable
from typing import Any, get_args, get_type_hints

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import TrainingArguments
from transformers.integrations import get_reporting_integration_callbacks

from foretune.task.arguments import build_lora
from foretune.task.optimisation import optimisation_problems
from foretune.task.problems import Problem, error_text, nearest, shown


def peft_problems(values: dict[str, Any], field: str) -> list[Problem]:
    """The problems that peft finds in a checked ``peft`` section; ``field`` is the section's name in messages."""
    _, problems = _try_build(build_lora, values, field)
    return problems or _initialisation_problems(values, field)


def training_problems(values: dict[str, Any], regression: bool, field: str) -> list[Problem]:
    """The problems that transformers finds in a checked ``training`` section.

    Args:
        values: The section.
        regression: Whether the task is to predict numbers instead of classes.
        field: Name of the section in messages.

    Returns:
        The problems.
    """
    arguments, problems = _try_build(
        lambda keys: TrainingArguments(**({"output_dir": "unused", "report_to": "none"} | keys)), values, field
    )
    if arguments is None:
        return problems
    if regression and arguments.label_smoothing_factor:
        problem = f"found {arguments.label_smoothing_factor}, but model.task is regression"
        fix = "leave it out: only the labels of classes can be smoothed"
        problems.append(Problem(f"{field}.label_smoothing_factor", problem, fix))
    try:
        get_reporting_integration_callbacks(arguments.report_to)
    except ValueError as error:
        problems.append(
            Problem(f"{field}.report_to", f"found {shown(arguments.report_to)}", f"write none ({error_text(error)})")
        )
    return problems + optimisation_problems(arguments, field)


def _try_build(build: Callable[[dict[str, Any]], Any], values: dict[str, Any], field: str) -> tuple[Any, list[Problem]]:
    """Build an object from the values; if that fails, return None and the problem."""
    try:
        return build(values), []
    except Exception as error:  # checks of other packages raise many kinds of errors
        problem = f"its keys cannot be used together ({error_text(error)})"
        return None, [Problem(field, problem, "change or remove the keys that are named there")]


def _initialisation_problems(values: dict[str, Any], field: str) -> list[Problem]:
    """The problems of the initialisation that ``init_lora_weights`` names: peft tries it on a small layer."""
    method = values.get("init_lora_weights")
    if not isinstance(method, str):
        return []
    keys = {key: values[key] for key in values if key.endswith("_config")}
    rank = 2 + values.get("r", LoraConfig.r) % 2  # some methods need an even rank
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights=method, **keys)  # type: ignore[arg-type]
            get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
    except Exception as error:
        names = [word for hint in get_args(get_type_hints(LoraConfig)["init_lora_weights"]) for word in get_args(hint)]
        fix = "write true or gaussian" if method in names else nearest(method, ["true", *names])
        problem = f"found {shown(method)}, which peft refuses ({error_text(error)})"
        return [Problem(f"{field}.init_lora_weights", problem, fix)]
    return []
