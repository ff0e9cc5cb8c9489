"""One training loop for real runs and forecasts: Hugging Face's ``Trainer``, whatever the model is.

Because both go through it, optimiser, schedule, batch order, accumulation, clipping and label smoothing of a forecast
are those of the real run by construction.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from foretune.linear import Moments
from foretune.task.config import ProximalSpec
from foretune.task.model import quiet
from foretune.train.proximal import anchor_adapters

TOGETHER = 16  # moments that are evaluated together: each is a copy of what is trained


class Point(TypedDict):
    """A point of a curve; train_loss is the mean over the steps since the last point, None before the first step."""

    step: int
    epoch: float
    train_loss: float | None
    eval_loss: float
    eval_metric: float


@dataclass(frozen=True)
class Run:
    """What a training run gave.

    Attributes:
        curve: A point before the first step, at the end, and between them as often as ``eval_strategy`` says.
        train_seconds: Time spent in steps.
        eval_seconds: Time spent in evaluations.
        step_losses: Training loss of every step that was made, as ``Trainer`` logs it.
    """

    curve: list[Point]
    train_seconds: float
    eval_seconds: float
    step_losses: list[float] = field(default_factory=list)

    @property
    def final(self) -> Point:
        """The last point."""
        return self.curve[-1]


class _Trainer(Trainer):
    eval_seconds = 0.0
    proximal: ProximalSpec | None = None
    moments: Moments | None = None
    blind = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.pending: list[dict[str, Any]] = []  # entries of the history without their evaluation yet
        self.losses: dict[int, torch.Tensor] = {}  # by the steps made before

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step
        self.losses[step] = self.losses[step] + loss if step in self.losses else loss
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made and self.proximal is not None and self.proximal.strength > 0:
            assert isinstance(self.model, nn.Module)
            anchor_adapters(optimizer, self.model, self.proximal)
        return optimizer

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        started = time.perf_counter()
        if self.moments is None and not self.blind:
            metrics = super().evaluate(*args, **kwargs)
        else:
            metrics = {}
            next(iter(self.get_eval_dataloader()))  # which draws a random number: later ones stay those of the real run
        if self.moments is not None:
            self.moments.take()
            self.pending.append({"step": self.state.global_step, "epoch": self.state.epoch or 0.0})
            self.state.log_history.append(self.pending[-1])
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            if len(self.pending) == TOGETHER:
                self.settle()
        self.eval_seconds += time.perf_counter() - started
        return metrics

    def settle(self) -> None:
        """Make the evaluations that were put off."""
        if self.moments is None:
            return
        model = self.model
        with torch.random.fork_rng(devices=[]):
            for entry, stand_in in zip(self.pending, self.moments.recall(), strict=True):
                self.model = stand_in
                entry.update(self.evaluation_loop(self.get_eval_dataloader(), "Evaluation").metrics or {})
        self.model = model
        self.pending.clear()


class _OnStep(TrainerCallback):
    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.tell(state.global_step, state.max_steps)


def run_trainer(
    model: nn.Module,
    args: TrainingArguments,
    train: Dataset,
    evaluation: Dataset,
    compute_metrics: Callable[[Any, Any], dict[str, float]],
    *,
    collator: Callable[..., Any] | None = None,
    tokenizer: Any = None,
    progress: Callable[[int, int], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    resume: bool = False,
    proximal: ProximalSpec | None = None,
    moments: Moments | None = None,
    blind: bool = False,
) -> tuple[Run, Trainer]:
    """Train a model that returns ``loss`` and ``logits``; evaluate as ``args`` say: see ``loop_arguments``.

    A proximal term acts on the adapters, and not on modules trained in full, such as a new head. Given ``moments``,
    evaluations are made later, several at a time, and ``blind`` not at all, unless the run itself depends on them.
    """

    def metrics(prediction: EvalPrediction) -> dict[str, float]:
        logits = prediction.predictions
        return compute_metrics(np.asarray(logits[0] if isinstance(logits, tuple) else logits), prediction.label_ids)

    with warnings.catch_warnings(), quiet():
        warnings.simplefilter("ignore")
        trainer = _Trainer(
            model=model,
            args=args,
            train_dataset=train,
            eval_dataset=evaluation,
            data_collator=collator,
            processing_class=tokenizer,
            compute_metrics=metrics,
            callbacks=[*callbacks, *([_OnStep(progress)] if progress else [])],
        )
        trainer.proximal = proximal
        if not _depends_on_evaluations(args):
            trainer.moments, trainer.blind = moments, blind
        for chatty in (PrinterCallback, ProgressCallback):
            trainer.remove_callback(chatty)
        started = time.perf_counter()
        trainer.train(resume_from_checkpoint=resume or None)
        if args.eval_strategy == "no" and not blind:  # the end is a point of every curve
            trainer.evaluate()
        settling = time.perf_counter()
        trainer.settle()
        trainer.eval_seconds += time.perf_counter() - settling
        seconds = time.perf_counter() - started
    curve, losses = _curve(trainer.state.log_history), [float(loss) for loss in trainer.losses.values()]
    return Run(curve, seconds - trainer.eval_seconds, trainer.eval_seconds, losses), trainer


def loop_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Evaluate and log by epoch, unless the user asked otherwise, and before the first step."""
    return {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "eval_on_start": True,
        "disable_tqdm": True,
    } | {name: given[name] for name in ("eval_strategy", "logging_strategy") if name in given}


def _depends_on_evaluations(args: TrainingArguments) -> bool:
    """Whether steps depend on evaluations, or evaluations on more than the parameters."""
    averages = str(args.optim).startswith("schedule_free")  # evaluates at other weights than it trains
    return averages or args.lr_scheduler_type == "reduce_lr_on_plateau" or args.metric_for_best_model is not None


def has_checkpoint(directory: Path) -> bool:
    """Whether an interrupted run left a checkpoint to go on from."""
    return any((path / "trainer_state.json").exists() for path in directory.glob("checkpoint-*"))


def _curve(history: list[dict[str, Any]]) -> list[Point]:
    curve: list[Point] = []
    loss: float | None = None
    for entry in history:
        if "loss" in entry:
            loss = float(entry["loss"])
        if "eval_loss" in entry:
            curve.append(
                {
                    "step": int(entry["step"]),
                    "epoch": float(entry.get("epoch", 0.0)),
                    "train_loss": loss,
                    "eval_loss": float(entry["eval_loss"]),
                    "eval_metric": float(entry["eval_metric"]),
                }
            )
    return curve
