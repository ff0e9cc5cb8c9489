"""Whether the keys of a section can be used together: what peft and transformers say about all of them at once."""

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
from foretune.task.problems import Problem, nearest, said, shown


def peft_problems(values: dict[str, Any], field: str) -> list[Problem]:
    """What peft says against a checked ``peft`` section, ``field`` in messages."""
    _, problems = _built(build_lora, values, field)
    return problems or _initialisation_problems(values, field)


def training_problems(values: dict[str, Any], regression: bool, field: str) -> list[Problem]:
    """What transformers says against a checked ``training`` section.

    Args:
        values: The section.
        regression: Whether numbers are predicted, not classes.
        field: How messages call the section.
    """
    arguments, problems = _built(
        lambda keys: TrainingArguments(**({"output_dir": "unused", "report_to": "none"} | keys)), values, field
    )
    if arguments is None:
        return problems
    if regression and arguments.label_smoothing_factor:
        found = f"found {arguments.label_smoothing_factor}, and model.task is regression"
        fix = "leave it out: only the labels of classes can be smoothed"
        problems.append(Problem(f"{field}.label_smoothing_factor", found, fix))
    try:
        get_reporting_integration_callbacks(arguments.report_to)
    except ValueError as error:
        problems.append(
            Problem(f"{field}.report_to", f"found {shown(arguments.report_to)}", f"write none: {said(error)}")
        )
    return problems + optimisation_problems(arguments, field)


def _built(build: Callable[[dict[str, Any]], Any], values: dict[str, Any], field: str) -> tuple[Any, list[Problem]]:
    """What is built from the values, or what is said against it."""
    try:
        return build(values), []
    except Exception as error:  # checks of other packages fail in many ways
        return None, [Problem(field, f"cannot be used together ({said(error)})", "change or remove the keys it names")]


def _initialisation_problems(values: dict[str, Any], field: str) -> list[Problem]:
    """Let peft begin a small layer in the way that is asked for by name."""
    way = values.get("init_lora_weights")
    if not isinstance(way, str):
        return []
    keys = {key: values[key] for key in values if key.endswith("_config")}
    rank = 2 + values.get("r", LoraConfig.r) % 2  # some ways want an even one
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            config = LoraConfig(r=rank, target_modules=["0"], init_lora_weights=way, **keys)  # type: ignore[arg-type]
            get_peft_model(nn.Sequential(nn.Linear(4, 4)), config)
    except Exception as error:
        known = [word for hint in get_args(get_type_hints(LoraConfig)["init_lora_weights"]) for word in get_args(hint)]
        fix = "write true or gaussian" if way in known else nearest(way, ["true", *known])
        return [Problem(f"{field}.init_lora_weights", f"found {shown(way)}, and peft says: {said(error)}", fix)]
    return []
