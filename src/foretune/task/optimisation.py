"""Whether an optimiser and a learning-rate schedule can be built, asked of transformers itself on one small layer.

Which arguments they take is read from transformers too, so that a new version brings its own.
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

from foretune.task.problems import Problem, nearest, said, shown

STEPS = 1000  # of the trial schedule at least, where the file does not say how many a run has
MOMENTS = 20  # of the trial schedule at which its learning rate is looked at
OF_THE_RUN = {"optimizer", "num_warmup_steps", "num_training_steps", "last_epoch"}  # not for the user to give


def optimisation_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    """What is wrong with the optimiser and the schedule of a run, ``field`` in messages."""
    found = _optimiser_problems(arguments, field) + _optimiser_argument_problems(arguments, field)
    return found[:1] or _schedule_problems(arguments, field)


def _optimiser_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    name = OptimizerNames(arguments.optim).value
    try:
        _optimiser(arguments)
    except Exception as error:
        if isinstance(error, ImportError) or "install" in str(error):
            return []  # its package is missing here: candidates are asked for that one by one
        if arguments.optim_target_modules:
            return []  # such an optimiser looks for modules of the model, which is not loaded yet
        reason = said(error)
    else:
        return []
    if arguments.optim_args:
        try:
            _optimiser(replace(arguments, optim_args=None))
        except Exception:
            pass
        else:
            fix = "write name=value, with commas between several, as the optimiser takes them"
            found = f"found {shown(arguments.optim_args)}, from which {name} cannot be built ({reason})"
            return [Problem(f"{field}.optim_args", found, fix)]
    return [Problem(f"{field}.optim", f"{name} cannot be built ({reason})", "mend that, or write adamw_torch")]


def _optimiser_argument_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    """Names in ``optim_args`` that the optimiser does not look at: it is the same whatever their value is."""
    names = [pair.partition("=")[0].strip() for pair in (arguments.optim_args or "").split(",") if pair.strip()]
    unused = [name for name in names if _built(arguments, f"{name}=1") == _built(arguments, f"{name}=2")]
    if not unused:
        return []
    found = f"{OptimizerNames(arguments.optim).value} does not take {', '.join(unused)}"
    return [Problem(f"{field}.optim_args", found, "remove it, or name another optimiser in optim")]


def _built(arguments: TrainingArguments, optim_args: str) -> str:
    """The class and the arguments of an optimiser, or what building it says."""
    try:
        return repr(Trainer.get_optimizer_cls_and_kwargs(replace(arguments, optim_args=optim_args)))
    except Exception as error:
        return f"{optim_args}: {error!r}"


def _optimiser(arguments: TrainingArguments) -> Optimizer:
    layer = nn.Linear(1, 1)
    kind, keys = Trainer.get_optimizer_cls_and_kwargs(arguments, layer)  # type: ignore[arg-type]
    of_its_own = [keys.pop(name) for name in ("params", "model", "optimizer_dict") if name in keys]
    return kind(*(of_its_own[:1] or [layer.parameters()]), **keys)


def _schedule_problems(arguments: TrainingArguments, field: str) -> list[Problem]:
    kind, given = SchedulerType(arguments.lr_scheduler_type), arguments.lr_scheduler_kwargs or {}
    if not isinstance(given, dict):
        fix = "write a mapping, such as {num_cycles: 2}"
        return [Problem(f"{field}.lr_scheduler_kwargs", f"found {shown(given)}", fix)]
    known = _schedule_arguments(kind)
    needed = [name for name, parameter in known.items() if parameter.default is inspect.Parameter.empty]
    listed = f"{kind.value} takes {', '.join(known) or 'none'}"
    for name in given:
        if name not in known:
            fix = nearest(str(name), known) if known else "remove it"
            return [Problem(f"{field}.lr_scheduler_kwargs.{name}", f"unknown key {shown(name)}: {listed}", fix)]
    absent = [name for name in needed if name not in given]
    if absent:
        found = f"{kind.value} needs {', '.join(absent)}"
        return [Problem(f"{field}.lr_scheduler_kwargs", found, f"add it, such as {{{absent[0]}: 100}}; {listed}")]
    steps = arguments.max_steps if arguments.max_steps > 0 else max(STEPS, 10 * int(arguments.warmup_steps))
    warmup = arguments.get_warmup_steps(steps)
    try:
        with warnings.catch_warnings(action="ignore"):
            optimiser = SGD(nn.Linear(1, 1).parameters(), lr=arguments.learning_rate)
            schedule = get_scheduler(kind, optimiser, warmup, steps, given)
            moments = {0, warmup, *(steps * moment // MOMENTS for moment in range(MOMENTS + 1))}
            rates = _rates(schedule, sorted(moments), arguments.learning_rate)
    except Exception as error:
        reason = said(error)
    else:
        highest = arguments.learning_rate * (1 + 1e-6)
        wrong = [rate for rate in rates if isinstance(rate, complex) or not 0 <= rate <= highest]
        if not wrong:
            return []
        reason = f"it leads to a learning rate of {max(wrong, key=abs):g}"
    found = f"{kind.value} cannot be built with {shown(given)} and learning_rate {arguments.learning_rate} ({reason})"
    fix = f"change learning_rate or lr_scheduler_kwargs; {listed}"
    return [Problem(f"{field}.lr_scheduler_type", found, fix)]


def _schedule_arguments(kind: SchedulerType) -> dict[str, inspect.Parameter]:
    """What may stand in ``lr_scheduler_kwargs`` for a schedule."""
    build: Any = TYPE_TO_SCHEDULER_FUNCTION[kind]
    found = inspect.signature(build).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in found.values()):
        schedule = type(build(SGD(nn.Linear(1, 1).parameters(), lr=1.0)))  # it hands them on to this class
        found = inspect.signature(schedule).parameters
    return {name: parameter for name, parameter in found.items() if name not in OF_THE_RUN}


def _rates(schedule: Any, moments: Sequence[int], rate: float) -> list[Any]:
    """Learning rates at some steps; none of schedules that wait for evaluations."""
    return [rate * schedule.lr_lambdas[0](moment) for moment in moments] if isinstance(schedule, LambdaLR) else []
