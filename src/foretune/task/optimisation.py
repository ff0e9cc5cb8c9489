"""Checks whether transformers can build the optimiser and the learning-rate schedule, by building them for one layer.

The names of their arguments are read from transformers, so that they fit the installed version.
"""

import inspect
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import SchedulerType, Trainer, TrainingArguments
from transformers.optimization import TYPE_TO_SCHEDULER_FUNCTION, get_scheduler
from transformers.training_args import OptimizerNames

from foretune.task.problems import Problem, error_text, nearest, shown

STEPS = 1000  # the least length of the trial schedule if the file does not give max_steps
MOMENTS = 20  # parts of the trial schedule; the learning rate is checked at the end of every part
SET_BY_RUN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}  # arguments from the run


def optimisation_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    """Find the problem of the optimiser or, if it has none, of the learning-rate schedule.

    Args:
        arguments: The training arguments.
        field: Name of the training section in messages.

    Returns:
        At most one problem.
    """
    problems = _optimiser_problems(arguments, field) + _optimiser_argument_problems(arguments, field)
    return problems[:1] or _schedule_problems(arguments, field)


def _optimiser_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    """Find out why the optimiser cannot be built, apart from missing packages."""
    name = OptimizerNames(arguments.optim).value
    try:
        _build_optimiser(arguments)
    except Exception as error:
        if isinstance(error, ImportError) or "install" in str(error):
            return []  # a package is missing here: train/rehearsal.py reports that for every candidate
        if arguments.optim_target_modules:
            return []  # the optimiser needs modules of the model, which is not loaded yet
        reason = error_text(error)
    else:
        return []
    if arguments.optim_args:
        try:
            _build_optimiser(replace(arguments, optim_args=None))
        except Exception:
            pass
        else:
            fix = f"write arguments of {name} as name=value, with commas between them"
            problem = f"found {shown(arguments.optim_args)}, with which {name} cannot be built ({reason})"
            return [Problem(f"{field}.optim_args", problem, fix)]
    return [Problem(f"{field}.optim", f"{name} cannot be built ({reason})", "correct that, or write adamw_torch")]


def _optimiser_argument_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    """Find names in ``optim_args`` that the optimiser ignores: two values give the same optimiser."""
    names = [pair.partition("=")[0].strip() for pair in (arguments.optim_args or "").split(",") if pair.strip()]
    unused = [name for name in names if _described(arguments, f"{name}=1") == _described(arguments, f"{name}=2")]
    if not unused:
        return []
    problem = f"{OptimizerNames(arguments.optim).value} does not take {', '.join(unused)}"
    return [Problem(f"{field}.optim_args", problem, "remove it, or name another optimiser in optim")]


def _described(arguments: TrainingArguments, optim_args: str) -> str:
    """The class and the arguments of an optimiser as text, or the error of building it."""
    try:
        return repr(Trainer.get_optimizer_cls_and_kwargs(replace(arguments, optim_args=optim_args)))
    except Exception as error:
        return f"{optim_args}: {error!r}"


def _build_optimiser(arguments: TrainingArguments) -> Optimizer:
    layer = nn.Linear(1, 1)
    kind, keys = Trainer.get_optimizer_cls_and_kwargs(arguments, layer)  # type: ignore[arg-type]
    own_parameters = [keys.pop(name) for name in ("params", "model", "optimizer_dict") if name in keys]
    return kind(*(own_parameters[:1] or [layer.parameters()]), **keys)


def _schedule_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    """Find the problem of the schedule: an unknown or missing argument, an error, or an invalid learning rate."""
    kind, keys = SchedulerType(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs or {}
    if not isinstance(keys, dict):
        fix = "write a mapping, such as {num_cycles: 2}"
        return [Problem(f"{field}.lr_scheduler_kwargs", f"found {shown(keys)}", fix)]
    valid = _schedule_arguments(kind)
    required = [name for name, parameter in valid.items() if parameter.default is inspect.Parameter.empty]
    listed = f"{kind.value} takes {', '.join(valid) or 'no arguments'}"
    for name in keys:
        if name not in valid:
            fix = nearest(str(name), valid) if valid else "remove it"
            return [Problem(f"{field}.lr_scheduler_kwargs.{name}", f"unknown key {shown(name)}: {listed}", fix)]
    missing = [name for name in required if name not in keys]
    if missing:
        problem = f"{kind.value} needs {', '.join(missing)}"
        return [Problem(f"{field}.lr_scheduler_kwargs", problem, f"add it, such as {{{missing[0]}: 100}}; {listed}")]
    steps = arguments.max_steps if arguments.max_steps > 0 else max(STEPS, 10 * int(arguments.warmup_steps))
    warmup = arguments.get_warmup_steps(steps)
    try:
        with warnings.catch_warnings(action="ignore"):
            optimiser = SGD(nn.Linear(1, 1).parameters(), lr=arguments.learning_rate)
            schedule = get_scheduler(kind, optimiser, warmup, steps, keys)
            moments = {0, warmup, *(steps * moment // MOMENTS for moment in range(MOMENTS + 1))}
            rates = _rates(schedule, sorted(moments), arguments.learning_rate)
    except Exception as error:
        reason = error_text(error)
    else:
        highest = arguments.learning_rate * (1 + 1e-6)
        invalid = [rate for rate in rates if isinstance(rate, complex) or not 0 <= rate <= highest]
        if not invalid:
            return []
        reason = f"it would give a learning rate of {max(invalid, key=abs):g}"
    problem = f"{kind.value} cannot be built with {shown(keys)} and learning_rate {arguments.learning_rate} ({reason})"
    fix = f"change learning_rate or lr_scheduler_kwargs; {listed}"
    return [Problem(f"{field}.lr_scheduler_type", problem, fix)]


def _schedule_arguments(kind: SchedulerType) -> dict[str, inspect.Parameter]:
    """The arguments of a schedule that ``lr_scheduler_kwargs`` may give."""
    build: Any = TYPE_TO_SCHEDULER_FUNCTION[kind]
    parameters = inspect.signature(build).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        schedule = type(build(SGD(nn.Linear(1, 1).parameters(), lr=1.0)))  # the function passes them to this class
        parameters = inspect.signature(schedule).parameters
    return {name: parameter for name, parameter in parameters.items() if name not in SET_BY_RUN}


def _rates(schedule: Any, moments: Sequence[int], rate: float) -> list[Any]:
    """Learning rates at some steps; an empty list for schedules that depend on evaluations."""
    return [rate * schedule.lr_lambdas[0](moment) for moment in moments] if isinstance(schedule, LambdaLR) else []
