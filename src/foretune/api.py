"""The Python interface: collect a task's tangents, and compute kernels, forecasts and recommendations from them."""

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
    """The neural tangent kernel (NTK) of a candidate, see :class:`foretune.kernel.Kernel`."""

    def ridge(self, strength: float) -> Ridge:
        """Fit kernel ridge regression with this kernel (docs/theory.md section 3).

        Args:
            strength: λ ≥ 0, in the sum convention.
        """
        return linear.ridge(self, strength)

    def logistic(self, strength: float) -> LogisticFit:
        """Fit kernel logistic regression, for cross-entropy, with this kernel (docs/theory.md section 3).

        Args:
            strength: λ > 0, in the sum convention.
        """
        return linear.logistic(self, strength)


@dataclass(repr=False)
class Tangents:
    """The tangents of a task, from which kernels and forecasts follow without another pass over the model.

    There is one exception: a seed draws its own new head. If that head differs from the head of the task's model, the
    first forecast of that seed makes another pass.

    Attributes:
        task: The task.
        data: The recorded tangents.
        again: A function that makes the same pass with the head of another seed. If it is None, forecasts that need it
            are refused.
    """

    task: Task
    data: tangents.Tangents
    again: Callable[[Task, int], tangents.Tangents] | None = field(default=None, repr=False)
    _starts: Starts = field(init=False, repr=False)
    __repr__ = brief

    def __post_init__(self) -> None:
        self._starts = Starts(self.task, self.data, self.again)

    def ntk(self, peft_config: PeftConfig, seed: int | None = None) -> Kernel:
        """Compute the NTK of a LoRA config's parameters before training, for training and evaluation examples.

        Args:
            peft_config: The config, as you would give it to peft.
            seed: The seed that draws the factors A. By default this is the seed of the task's first candidate, or 42 as
                in ``TrainingArguments``.
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
        """Forecast the fine-tune that peft and ``Trainer`` would run with this config and these arguments.

        Settings that cannot be trained or forecast raise an ``InputError``.

        Args:
            peft_config: The config, as you would give it to peft.
            args: The arguments, as you would give them to ``Trainer``. Only values that differ from the defaults count.
                By default these are the arguments of the task's first candidate, with its proximal term.
            seeds: Number of simulated seeds, counted up from the seed of ``args`` (42 if it has none).
            refreshes: How often a simulated run collects new tangents. Every time costs a pass over the network.
            begin: If the run may collapse, this share of the real run is trained. 0 turns this off.
        """
        candidate = own_candidate(self.task, "forecast", peft_config, args)
        check_adapters(self.task, candidate, "peft_config")
        rehearse(self.task, candidate, "args")
        check_training(candidate, "args")
        with self.task.placed():
            forecasts = forecast(self._starts, self.task, [candidate], seeds=seeds, refreshes=refreshes)
        return begun(forecasts, self.task, begin)[0]

    def recommend(self, space: Space) -> Recommendation:
        """Search for the best fine-tune in a space, by forecasts and without training.

        Args:
            space: The space, from :func:`search_space`.
        """
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
    """Collect the tangents of a task in one pass over the model.

    The arguments are those of :func:`foretune.tangents.collect`.
    """

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
    """Make the search space around a fine-tune: layers, ranks and learning rates, as in ``foretune recommend``.

    The task's own candidates are in the space too. A config that does not fit the model or cannot be forecast raises an
    ``InputError``.

    Args:
        task: The task.
        peft_config: The config, as you would give it to peft.
        args: The arguments, as you would give them to ``Trainer``. Only values that differ from the defaults count. By
            default these are the arguments of the task's first candidate.
    """
    base = own_candidate(task, "base", peft_config, args)
    check_adapters(task, base, "peft_config")
    return around(task.model, base, task.candidates)


def own_candidate(task: Task, name: str, peft_config: PeftConfig, args: TrainingArguments | None) -> Candidate:
    """Make a candidate from a config and arguments. Without arguments, it has those of the task's first candidate."""
    lora = plain_lora(peft_config)
    if args is None and task.candidates:
        return dataclasses.replace(task.candidates[0], name=name, peft=lora)
    return Candidate(name, lora, given_arguments(args))


def plain_lora(peft_config: PeftConfig) -> LoraConfig:
    """Check that a config is a ``LoraConfig`` and return it.

    Raises:
        InputError: The config belongs to another method.
    """
    if type(peft_config) is not LoraConfig:
        kind = type(peft_config).__name__.removesuffix("Config")
        raise InputError("peft_config", f"{kind} cannot be forecast yet", "pass a LoraConfig (LoRA or rsLoRA)")
    return peft_config


def given_arguments(args: TrainingArguments | None) -> dict[str, object]:
    """The values of ``TrainingArguments`` that differ from their defaults, without the output directory."""
    if args is None:
        return {}
    default = TrainingArguments(output_dir=args.output_dir)
    skipped = {"output_dir", "report_to"}
    names = [field.name for field in dataclasses.fields(args) if field.init and field.name not in skipped]
    return {name: getattr(args, name) for name in names if getattr(args, name) != getattr(default, name)}
