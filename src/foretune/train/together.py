"""Several runs in one training loop: tangent models in lockstep, each with its own learning rate."""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretune.linear import Lockstep, Moments
from foretune.train.arguments import depends_on_evaluations
from foretune.train.curve import Run
from foretune.train.loop import LoopTrainer
from foretune.train.put_off import PutOff

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")  # whatever the rate, the same shares of it
OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")  # of torch, a parameter at a time


def can_share(args: TrainingArguments) -> bool:
    """Whether runs that differ in their learning rate only can be one: nothing in them looks beyond a step."""
    return (
        args.lr_scheduler_type in SCHEDULES
        and not args.lr_scheduler_kwargs
        and args.learning_rate > 0
        and args.optim in OPTIMISERS
        and args.gradient_accumulation_steps == 1
        and args.label_smoothing_factor == 0
        and not depends_on_evaluations(args)
    )


class LockstepTrainer(LoopTrainer):
    """Trains a ``Lockstep``: rates, clipping, training losses and evaluations are each member's own."""

    rates: Sequence[float] = ()
    limit = 0.0  # of each member's gradients
    last_logged = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As ever; what is kept are the members' losses, and gradients are clipped here.

        A member whose gradients are no numbers any more is lost. It gets none: ``Trainer`` measures all gradients
        together in every step, and would multiply those of the others by what it finds.
        """
        loss = super().training_step(*args, **kwargs)
        self.losses[self.state.global_step] = self.lockstep.losses
        for member in self.lockstep.models:
            parameters = list(member.parameters())
            if not nn.utils.clip_grad_norm_(parameters, self.limit or math.inf).isfinite():
                for parameter in parameters:
                    parameter.data.fill_(math.nan)
                    parameter.grad = None
        return loss

    @property
    def lockstep(self) -> Lockstep:
        """The model."""
        assert isinstance(self.model, Lockstep)
        return self.model

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Groups of parameters for each member."""
        groups, optimizer.param_groups = optimizer.param_groups, []
        for member, rate in zip(self.lockstep.models, self.rates, strict=True):
            mine = set(member.parameters())
            for group in groups:
                own = [parameter for parameter in group["params"] if parameter in mine]
                optimizer.add_param_group(group | {"params": own, "lr": rate})

    def logged(self, loss: float) -> list[float]:
        """The members' means, with ``Trainer``'s stand-in for what is no number."""
        several = [self.losses[step].tolist() for step in range(self.last_logged, self.state.global_step)]
        self.last_logged = self.state.global_step
        return [_mean(own) for own in zip(*several, strict=True)]


class _Members(TrainerCallback):
    """Measures the members after each step, and lets callbacks watch the member that is theirs."""

    def __init__(self, watch: Sequence[Sequence[TrainerCallback]]) -> None:
        self.watch = watch

    def _tell(self, event: str, args: Any, state: Any, control: Any, kwargs: dict[str, Any]) -> None:
        for member, callbacks in zip(kwargs["model"].models, self.watch, strict=True):
            for callback in callbacks:
                getattr(callback, event)(args, state, control, **kwargs | {"model": member})

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell("on_train_begin", args, state, control, kwargs)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._tell("on_step_begin", args, state, control, kwargs)

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].forget()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["model"].forget()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        kwargs["model"].measure()
        self._tell("on_step_end", args, state, control, kwargs)


def run_together(
    lockstep: Lockstep,
    several: Sequence[TrainingArguments],
    train: Dataset,
    evaluation: Dataset,
    compute_metrics: Callable[[Any, Any], dict[str, float]],
    *,
    collator: Callable[..., Any],
    watch: Sequence[Sequence[TrainerCallback]],
    moments: Moments,
    progress: Callable[[int, int], None] | None = None,
) -> list[Run]:
    """Train the members, as ``run_trainer`` would train each of them alone.

    Args:
        lockstep: The members.
        several: The arguments of each, which differ in their learning rates only and ``can_share`` a loop.
        train: Examples by number.
        evaluation: Likewise.
        compute_metrics: Of outputs and labels.
        collator: Makes batches of them.
        watch: Callbacks for each member, which see it as the model and the first member's arguments.
        moments: Of the members.
        progress: Called with steps done and in all.
    """
    args = copy.copy(several[0])
    args.max_grad_norm = 0.0  # of all members together
    trainer = LockstepTrainer(
        model=lockstep,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=collator,
        compute_metrics=compute_metrics,
        callbacks=[_Members(watch)],
        progress=progress,
    )
    trainer.rates, trainer.limit = [each.learning_rate for each in several], float(several[0].max_grad_norm)
    trainer.put_off = PutOff(moments)
    return trainer.run()


def _mean(losses: Sequence[float]) -> float:
    total = 0.0
    for count, loss in enumerate(losses, 1):
        total += loss if math.isfinite(loss) else total / count
    return total / len(losses)
