"""The one training loop of real and simulated runs: Hugging Face's ``Trainer``, with any model.

Because both kinds of runs use it, a simulated run has the optimiser, schedule, batch order, gradient accumulation,
clipping and label smoothing of the real run by construction.
"""

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch import nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader
from transformers import EvalPrediction, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from foretune.linear import Moments
from foretune.task.config import ProximalSpec
from foretune.task.model import quiet
from foretune.train.arguments import depends_on_evaluations
from foretune.train.checkpoints import seal
from foretune.train.curve import Run, curve_of
from foretune.train.proximal import anchor_adapters
from foretune.train.put_off import TOGETHER, PutOff
from foretune.train.trackers import guard_trackers


class LoopTrainer(Trainer):
    """``Trainer`` as both kinds of runs use it.

    It prints nothing, keeps the loss of every step, and can postpone evaluations. Evaluations use all examples, and
    there is always one after the last step.

    Args:
        compute_metrics: Computes metrics from outputs and labels.
        progress: Called with the number of steps done and of all steps.
        notify: Called with a sentence about a failure that does not end the run.
        kwargs: Other arguments of ``Trainer``.

    Attributes:
        eval_seconds: Time spent in evaluations so far.
        proximal: The proximal term, if there is one.
        blind: Whether evaluations are left out.
        put_off: The postponed evaluations; None if evaluations are made at once.
    """

    eval_seconds = 0.0
    proximal: ProximalSpec | None = None
    blind = False

    def __init__(
        self,
        *,
        compute_metrics: Callable[[Any, Any], dict[str, float]],
        progress: Callable[[int, int], None] | None = None,
        notify: Callable[[str], None] | None = None,
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
        guard_trackers(self, notify or (lambda _: None))
        if progress:
            self.add_callback(_OnStep(progress))
        self.put_off: PutOff | None = None
        self.losses: dict[int, torch.Tensor] = {}  # the training loss of every step, by the number of steps before it
        self.last_evaluated: int | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Take a step as ``Trainer`` does, and keep its loss."""
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step
        self.losses[step] = self.losses[step] + loss if step in self.losses else loss
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """Create the optimiser as ``Trainer`` does, and prepare it when it is new."""
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if is_new:
            self.prepare_optimizer(optimizer)
        return optimizer

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Add the proximal term, if there is one."""
        if self.proximal is not None and self.proximal.strength > 0:
            assert isinstance(self.model, nn.Module)
            anchor_adapters(optimizer, self.model, self.proximal)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Return batches of all evaluation examples; ``dataloader_drop_last`` applies to training only."""
        args = self.args
        self.args = copy.copy(args)
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args = args

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as ``Trainer`` does, and add training losses to the histories of the postponed evaluations."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.put_off:
            for history, loss in zip(self.put_off.histories, self.logged(logs["loss"]), strict=True):
                history.append({"loss": loss})

    def logged(self, loss: float) -> list[float]:
        """Return the mean training loss since the last log entry, for every model whose evaluations are postponed."""
        return [loss]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate now, postpone the evaluation, or leave it out."""
        started = time.perf_counter()
        if not self.put_off and not self.blind:
            metrics = super().evaluate(*args, **kwargs)
        else:
            metrics = {}
            next(iter(self.get_eval_dataloader()))  # draws the random number that an evaluation of the real run draws
        if self.put_off:
            self.put_off.take(self.state.global_step, self.state.epoch or 0.0)
            self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
            if len(self.put_off.pending) == TOGETHER:
                self.settle()
        self.last_evaluated = self.state.global_step
        self.eval_seconds += time.perf_counter() - started
        return metrics

    def settle(self) -> None:
        """Make the evaluations that were postponed."""
        model = self.model

        def evaluated(stand_in: nn.Module) -> dict[str, float]:
            self.model = stand_in
            return self.evaluation_loop(self.get_eval_dataloader(), "Evaluation").metrics or {}

        if self.put_off:
            with torch.random.fork_rng(devices=[]):
                self.put_off.settle(evaluated)
            self.model = model

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as ``Trainer`` does, and seal it once all its files are written."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            seal(Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}"))

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint is loaded at the end; None if the model of the last step is kept."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return int(best.rpartition("-")[2]) if best else None

    @property
    def last_step_is_evaluated(self) -> bool:
        """Whether there was an evaluation after the last step, in this process or before an interruption."""
        step = self.state.global_step
        logged = any("eval_loss" in entry and entry["step"] == step for entry in self.state.log_history)
        return logged or self.last_evaluated == step

    def run(self, checkpoint: Path | None = None) -> list[Run]:
        """Train, and evaluate at the end.

        Args:
            checkpoint: The checkpoint to continue from, if there is one.

        Returns:
            The run; with postponed evaluations of several models, one run for every model.
        """
        started = time.perf_counter()
        with warnings.catch_warnings(), quiet():
            warnings.simplefilter("ignore")
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            kept = self.kept_step
            if kept is None and not self.blind and not self.last_step_is_evaluated:
                self.evaluate()
            settling = time.perf_counter()
            self.settle()
        self.eval_seconds += time.perf_counter() - settling
        seconds = time.perf_counter() - started - self.eval_seconds
        histories = self.put_off.histories if self.put_off else [self.state.log_history]
        steps = [loss.reshape(len(histories)).tolist() for loss in self.losses.values()]
        losses = [[losses_of_step[number] for losses_of_step in steps] for number in range(len(histories))]
        return [
            Run(curve_of(history), seconds / len(histories), self.eval_seconds / len(histories), step_losses, kept)
            for history, step_losses in zip(histories, losses, strict=True)
        ]


class _OnStep(TrainerCallback):
    """Reports the number of steps done and of all steps."""

    def __init__(self, tell: Callable[[int, int], None]) -> None:
        self.tell = tell

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the step."""
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
    notify: Callable[[str], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: Path | None = None,
    proximal: ProximalSpec | None = None,
    moments: Moments | None = None,
    blind: bool = False,
) -> tuple[Run, LoopTrainer]:
    """Train a model that returns ``loss`` and ``logits``.

    Args:
        model: The model.
        args: The training arguments, which also say when to evaluate, see ``loop_arguments``.
        train: Training data.
        evaluation: Evaluation data.
        compute_metrics: Computes metrics from outputs and labels.
        collator: Makes batches.
        tokenizer: The tokenizer, for ``Trainer``.
        progress: Called with the number of steps done and of all steps.
        notify: Called with a sentence about a failure that does not end the run.
        callbacks: Further callbacks of ``Trainer``.
        checkpoint: The checkpoint to continue from, if there is one.
        proximal: A proximal term on the adapters. It does not act on modules trained in full, such as a new head.
        moments: Postpone evaluations, and make several at a time on copies of the parameters.
        blind: Leave evaluations out.

    Returns:
        The run and its trainer. If steps depend on evaluations, as with some schedules, evaluations are always made at
        once, whatever ``moments`` and ``blind`` are.
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
        notify=notify,
    )
    trainer.proximal = proximal
    if not depends_on_evaluations(args):
        trainer.put_off, trainer.blind = PutOff(moments) if moments else None, blind
    (run,) = trainer.run(checkpoint)
    return run, trainer
