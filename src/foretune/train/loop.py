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
    def seconds(self) -> float:
        """Time spent in all."""
        return self.train_seconds + self.eval_seconds

    @property
    def final(self) -> Point:
        """The last point."""
        return self.curve[-1]


class PutOff:
    """Evaluations of models that are made later, several at a time, and the histories that they belong to.

    Args:
        moments: Keeps what is to be evaluated.
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.histories: list[list[dict[str, Any]]] = [[] for _ in moments.models]
        self.pending: list[list[dict[str, Any]]] = []  # entries of the histories without their evaluations yet

    def take(self, step: int, epoch: float) -> None:
        """Note that there is something to evaluate."""
        self.moments.take()
        self.pending.append([{"step": step, "epoch": epoch} for _ in self.histories])
        for history, entry in zip(self.histories, self.pending[-1], strict=True):
            history.append(entry)

    def settle(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Make the evaluations."""
        for entries, stand_ins in zip(self.pending, self.moments.recall(), strict=True):
            for entry, stand_in in zip(entries, stand_ins, strict=True):
                entry.update(evaluate(stand_in))
        self.pending.clear()


class LoopTrainer(Trainer):
    """``Trainer`` as both kinds of runs use it: it says nothing, keeps every step's loss and may put evaluations off.

    Args:
        compute_metrics: Of outputs and labels.
        progress: Called with steps done and in all.
        kwargs: What else ``Trainer`` takes.
    """

    eval_seconds = 0.0
    proximal: ProximalSpec | None = None
    blind = False

    def __init__(
        self,
        *,
        compute_metrics: Callable[[Any, Any], dict[str, float]],
        progress: Callable[[int, int], None] | None = None,
        **kwargs: Any,
    ) -> None:
        def metrics(prediction: EvalPrediction) -> dict[str, float]:
            logits = prediction.predictions
            return compute_metrics(np.asarray(logits[0] if isinstance(logits, tuple) else logits), prediction.label_ids)

        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            super().__init__(compute_metrics=metrics, **kwargs)
        for chatty in (PrinterCallback, ProgressCallback):
            self.remove_callback(chatty)
        if progress:
            self.add_callback(_OnStep(progress))
        self.put_off: PutOff | None = None
        self.losses: dict[int, torch.Tensor] = {}  # by the steps made before

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """As ever."""
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step
        self.losses[step] = self.losses[step] + loss if step in self.losses else loss
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """As ever, prepared once."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            self.prepare_optimizer(optimizer)
        return optimizer

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """With the proximal term, if there is one."""
        if self.proximal is not None and self.proximal.strength > 0:
            assert isinstance(self.model, nn.Module)
            anchor_adapters(optimizer, self.model, self.proximal)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Training losses belong to the histories of what is evaluated later, too."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.put_off:
            for history, loss in zip(self.put_off.histories, self.logged(logs["loss"]), strict=True):
                history.append({"loss": loss})

    def logged(self, loss: float) -> list[float]:
        """The mean training loss since the last one, of everything whose evaluations are put off."""
        return [loss]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Now, later or not at all."""
        started = time.perf_counter()
        if not self.put_off and not self.blind:
            metrics = super().evaluate(*args, **kwargs)
        else:
            metrics = {}
            next(iter(self.get_eval_dataloader()))  # which draws a random number: later ones stay those of the real run
        if self.put_off:
            self.put_off.take(self.state.global_step, self.state.epoch or 0.0)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            if len(self.put_off.pending) == TOGETHER:
                self.settle()
        self.eval_seconds += time.perf_counter() - started
        return metrics

    def settle(self) -> None:
        """Make the evaluations that were put off."""
        model = self.model

        def evaluated(stand_in: nn.Module) -> dict[str, float]:
            self.model = stand_in
            return self.evaluation_loop(self.get_eval_dataloader(), "Evaluation").metrics or {}

        if self.put_off:
            with torch.random.fork_rng(devices=[]):
                self.put_off.settle(evaluated)
            self.model = model

    def run(self, resume: bool = False) -> list[Run]:
        """Train, with an evaluation at the end, and say how it went: one run, or one for each model of ``put_off``."""
        started = time.perf_counter()
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            self.train(resume_from_checkpoint=resume or None)
            if self.args.eval_strategy == "no" and not self.blind:  # the end is a point of every curve
                self.evaluate()
            settling = time.perf_counter()
            self.settle()
        self.eval_seconds += time.perf_counter() - settling
        seconds = time.perf_counter() - started - self.eval_seconds
        histories = self.put_off.histories if self.put_off else [self.state.log_history]
        steps = [loss.reshape(len(histories)).tolist() for loss in self.losses.values()]
        losses = [[each[number] for each in steps] for number in range(len(histories))]
        return [
            Run(_curve(history), seconds / len(histories), self.eval_seconds / len(histories), own)
            for history, own in zip(histories, losses, strict=True)
        ]


class _OnStep(TrainerCallback):
    """Tells steps done and in all."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Tell."""
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
) -> tuple[Run, LoopTrainer]:
    """Train a model that returns ``loss`` and ``logits``; evaluate as ``args`` say: see ``loop_arguments``.

    A proximal term acts on the adapters, and not on modules trained in full, such as a new head. Given ``moments``,
    evaluations are made later, several at a time, and ``blind`` not at all, unless the run itself depends on them.
    """
    trainer = LoopTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=evaluation,
        data_collator=collator,
        processing_class=tokenizer,
        compute_metrics=compute_metrics,
        callbacks=list(callbacks),
        progress=progress,
    )
    trainer.proximal = proximal
    if not depends_on_evaluations(args):
        trainer.put_off, trainer.blind = PutOff(moments) if moments else None, blind
    (run,) = trainer.run(resume)
    return run, trainer


def loop_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Evaluate and log by epoch, unless the user asked otherwise, and before the first step."""
    return {
        "eval_strategy": "epoch",
        "logging_strategy": "epoch",
        "eval_on_start": True,
        "disable_tqdm": True,
    } | {name: given[name] for name in ("eval_strategy", "logging_strategy") if name in given}


def depends_on_evaluations(args: TrainingArguments) -> bool:
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
