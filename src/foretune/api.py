"""The objects of the Python interface: tangents that know their task, and the kernels and forecasts they give."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from transformers import TrainingArguments

from foretune import linear, tangents
from foretune.brief import brief
from foretune.errors import InputError
from foretune.forecast.beginning import BEGIN
from foretune.forecast.eligibility import check_adapters, check_training
from foretune.forecast.expectation import Forecast
from foretune.forecast.forecast import SEEDS, begun, forecast
from foretune.forecast.search import Recommendation, Search
from foretune.forecast.starts import Starts
from foretune.kernel import Kernel as BaseKernel
from foretune.kernel import ntk
from foretune.linear import LogisticFit, Ridge
from foretune.tangents.collect import Progress
from foretune.task import Candidate, Task
from foretune.task.space import Space, around
from foretune.train.rehearsal import rehearse


class Kernel(BaseKernel):
    """The NTK of a candidate; see :class:`foretune.kernel.Kernel`."""

    def ridge(self, strength: float) -> Ridge:
        """Kernel ridge regression, λ = ``strength`` in the sum convention (docs/theory.md section 3)."""
        return linear.ridge(self, strength)

    def logistic(self, strength: float) -> LogisticFit:
        """Its counterpart for cross-entropy, λ = ``strength`` > 0 in the sum convention (docs/theory.md section 3)."""
        return linear.logistic(self, strength)


@dataclass(repr=False)
class Tangents:
    """The tangents of a task, from which kernels and forecasts follow without another pass over the model.

    Forecasts from a seed that starts from another new head than the task's model make one more pass, once.

    Attributes:
        task: The task.
        data: What the pass recorded.
        again: Makes the same pass over the task with the head of another seed; None: such forecasts are refused.
    """

    task: Task
    data: tangents.Tangents
    again: Callable[[Task, int], tangents.Tangents] | None = field(default=None, repr=False)
    _starts: Starts = field(init=False, repr=False)
    __repr__ = brief

    def __post_init__(self) -> None:
        self._starts = Starts(self.task, self.data, self.again)

    def ntk(self, peft_config: PeftConfig, seed: int | None = None) -> Kernel:
        """The NTK of a LoRA config's parameters at the initialisation of ``seed``, over training and eval examples.

        Args:
            peft_config: As it would be given to peft.
            seed: Of the factors A; by default that of the task's first candidate, or 42 as in ``TrainingArguments``.
        """
        candidate = own_candidate(self.task, "ntk", peft_config, None)
        adapters, _ = self._starts.draw(candidate, candidate.seed if seed is None else seed)
        base = ntk(self.data, adapters)
        return Kernel(**{field.name: getattr(base, field.name) for field in dataclasses.fields(base)})

    def forecast(
        self,
        peft_config: PeftConfig,
        args: TrainingArguments | None = None,
        *,
        seeds: int = SEEDS,
        refreshes: int = 0,
        begin: float = BEGIN,
    ) -> Forecast:
        """Simulate the fine-tune that peft and ``Trainer`` would make of these.

        Settings that cannot be trained or forecast are an ``InputError``.

        Args:
            peft_config: As it would be given to peft.
            args: As they would be given to ``Trainer``; only what differs from the defaults counts. By default those of
                the task's first candidate, with its proximal term.
            seeds: Simulated seeds, counted up from that of ``args`` (42 if it has none).
            refreshes: How often tangents are taken again in each simulated run, each time by a pass over the network.
            begin: Share of the real run that is made if it may collapse; 0: none.
        """
        candidate = own_candidate(self.task, "forecast", peft_config, args)
        check_adapters(self.task, candidate, "peft_config")
        rehearse(self.task, candidate, "args")
        check_training(candidate, "args")
        with self.task.placed():
            forecasts = forecast(self._starts, self.task, [candidate], seeds=seeds, refreshes=refreshes)
        return begun(forecasts, self.task, begin)[0]

    def recommend(self, space: Space) -> Recommendation:
        """Search a space for the best fine-tune, without training any; see :func:`search_space`."""
        with self.task.placed():
            return Search(self._starts, self.task, space).run()


def collect(
    task: Task,
    modules: str | Sequence[str] = "all-linear",
    *,
    directory: str | Path | None = None,
    dtype: torch.dtype | None = None,
    tolerance: float | None = None,
    sample: int | None = None,
    batch_size: int = 32,
    progress: Progress | None = None,
    notify: Callable[[str], None] | None = None,
) -> Tangents:
    """The one pass over the model; arguments as :func:`foretune.tangents.collect`."""

    def take(task: Task, seed: int | None = None) -> tangents.Tangents:
        return tangents.collect(
            task,
            modules,
            directory=directory,
            dtype=dtype,
            tolerance=tolerance,
            sample=sample,
            batch_size=batch_size,
            progress=progress,
            notify=notify,
        )

    return Tangents(task, take(task), take)


def search_space(task: Task, peft_config: PeftConfig, args: TrainingArguments | None = None) -> Space:
    """What may be chosen around a fine-tune: the places, ranks and learning rates of ``foretune recommend``.

    The task's own candidates compete. What does not fit the model or cannot be forecast is an ``InputError``.

    Args:
        task: The task.
        peft_config: As it would be given to peft.
        args: As they would be given to ``Trainer``; only what differs from the defaults counts. By default those of the
            task's first candidate.
    """
    base = own_candidate(task, "base", peft_config, args)
    check_adapters(task, base, "peft_config")
    return around(task.model, base, task.candidates)


def own_candidate(task: Task, name: str, peft_config: PeftConfig, args: TrainingArguments | None) -> Candidate:
    """A candidate with this adapter and these arguments, or else those of the task's first candidate."""
    lora = plain_lora(peft_config)
    if args is None and task.candidates:
        return dataclasses.replace(task.candidates[0], name=name, peft=lora)
    return Candidate(name, lora, given_arguments(args))


def plain_lora(peft_config: PeftConfig) -> LoraConfig:
    """The config, which must be LoRA's own.

    Raises:
        InputError: It is another method's.
    """
    if type(peft_config) is not LoraConfig:
        kind = type(peft_config).__name__.removesuffix("Config")
        raise InputError("peft_config", f"{kind} cannot be forecast yet", "pass a LoraConfig (LoRA or rsLoRA)")
    return peft_config


def given_arguments(args: TrainingArguments | None) -> dict[str, object]:
    """What a ``TrainingArguments`` says beyond its defaults and its output directory."""
    if args is None:
        return {}
    default = TrainingArguments(output_dir=args.output_dir)
    skipped = {"output_dir", "report_to"}
    names = [field.name for field in dataclasses.fields(args) if field.init and field.name not in skipped]
    return {name: getattr(args, name) for name in names if getattr(args, name) != getattr(default, name)}
