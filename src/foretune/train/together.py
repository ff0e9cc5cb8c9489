"""Train several tangent models in one loop, in lockstep, with a learning rate for every model."""

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

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")  # their shape does not depend on the learning rate
OPTIMISERS = ("adamw_torch", "adamw_torch_fused", "sgd", "rmsprop", "adagrad")  # they treat parameters independently


def can_share(args: TrainingArguments) -> bool:
    """Whether runs with these arguments, which differ only in their learning rate, can share a loop."""
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
    """Trains a ``Lockstep``; every member has a learning rate, clipping, losses and evaluations of its own.

    Attributes:
        rates: The learning rate of every member.
        limit: The largest norm of a member's gradients, above which they are clipped; 0 clips nothing.
        last_logged: The step of the last log entry.
    """

    rates: Sequence[float] = ()
    limit = 0.0
    last_logged = 0

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take a step as ``Trainer`` does, keep the losses of the members, and clip the gradients of every member.

        A member whose gradients are no longer finite is set to nan and gets no gradients. ``Trainer`` computes one norm
        of all gradients, and a single infinite gradient would spoil the others.
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
        """The model, as a ``Lockstep``."""
        assert isinstance(self.model, Lockstep)
        return self.model

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Split the parameter groups, so that every member has groups with its own learning rate."""
        groups, optimizer.param_groups = optimizer.param_groups, []
        for member, rate in zip(self.lockstep.models, self.rates, strict=True):
            members_parameters = set(member.parameters())
            for group in groups:
                params = [parameter for parameter in group["params"] if parameter in members_parameters]
                optimizer.add_param_group(group | {"params": params, "lr": rate})

    def logged(self, loss: float) -> list[float]:
        """Return the mean losses of the members since the last log entry."""
        by_step = [self.losses[step].tolist() for step in range(self.last_logged, self.state.global_step)]
        self.last_logged = self.state.global_step
        return [_mean(losses) for losses in zip(*by_step, strict=True)]


class _Members(TrainerCallback):
    """Measures the members after every step, and gives every member to the callbacks that watch it."""

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
    arguments: Sequence[TrainingArguments],
    train: Dataset,
    evaluation: Dataset,
    compute_metrics: Callable[[Any, Any], dict[str, float]],
    *,
    collator: Callable[..., Any],
    watch: Sequence[Sequence[TrainerCallback]],
    moments: Moments,
    progress: Callable[[int, int], None] | None = None,
) -> list[Run]:
    """Train all members of a lockstep, with the results that ``run_trainer`` would give for every member alone.

    Args:
        lockstep: The members.
        arguments: The arguments of every member. They differ only in their learning rates, and ``can_share`` a loop.
        train: Numbers of the training examples.
        evaluation: Numbers of the evaluation examples.
        compute_metrics: Computes metrics from outputs and labels.
        collator: Makes batches.
        watch: Callbacks for every member. They get that member as the model, and the first member's arguments.
        moments: Keeps copies of the members' parameters for evaluations.
        progress: Called with the number of steps done and of all steps.

    Returns:
        The runs of the members.
    """
    args = copy.copy(arguments[0])
    args.max_grad_norm = 0.0  # Trainer would clip the gradients of all members together
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
    trainer.rates, trainer.limit = [own.learning_rate for own in arguments], float(arguments[0].max_grad_norm)
    trainer.put_off = PutOff(moments)
    return trainer.run()


def _mean(losses: Sequence[float]) -> float:
    """The mean, where a loss that is not finite is replaced by ``total / count``, as ``Trainer`` does."""
    total = 0.0
    for count, loss in enumerate(losses, 1):
        total += loss if math.isfinite(loss) else total / count
    return total / len(losses)
