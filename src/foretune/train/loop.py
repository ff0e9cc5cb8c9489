"""One training loop for real runs and forecasts: Hugging Face's ``Trainer``, whatever the model is.

Because both go through it, optimiser, schedule, batch order, accumulation, clipping and label smoothing of a forecast
are those of the real run by construction.
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
    """``Trainer`` as both kinds of runs use it: it prints nothing, keeps every step's loss and may put evaluations off.

    Evaluations are of all examples, and the last step is always evaluated.

    Args:
        compute_metrics: Of outputs and labels.
        progress: Called with steps done and in all.
        notify: Called with a sentence about what did not work but does not end the run.
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
        self.losses: dict[int, torch.Tensor] = {}  # by the steps made before
        self.last_evaluated: int | None = None

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """A step of ``Trainer``, whose loss is kept."""
        loss = super().training_step(*args, **kwargs)
        step = self.state.global_step
        self.losses[step] = self.losses[step] + loss if step in self.losses else loss
        return loss

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        """The optimiser of ``Trainer``, prepared once."""
        made = self.optimizer is None
        optimizer = super().create_optimizer(model)
        if made:
            self.prepare_optimizer(optimizer)
        return optimizer

    def prepare_optimizer(self, optimizer: Optimizer) -> None:
        """Add the proximal term, if there is one."""
        if self.proximal is not None and self.proximal.strength > 0:
            assert isinstance(self.model, nn.Module)
            anchor_adapters(optimizer, self.model, self.proximal)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Batches of all evaluation examples: ``dataloader_drop_last`` is about training."""
        args = self.args
        self.args = copy.copy(args)
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args = args

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as ``Trainer`` does, training losses to the histories of what is evaluated later too."""
        super().log(logs, *args, **kwargs)
        if "loss" in logs and self.put_off:
            for history, loss in zip(self.put_off.histories, self.logged(logs["loss"]), strict=True):
                history.append({"loss": loss})

    def logged(self, loss: float) -> list[float]:
        """The mean training loss since the last one, of everything whose evaluations are put off."""
        return [loss]

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Evaluate now, later or not at all."""
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
        self.last_evaluated = self.state.global_step
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

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save a checkpoint as ``Trainer`` does, and seal it when it is whole."""
        super()._save_checkpoint(model, trial)
        if self.args.should_save:
            seal(Path(str(self.args.output_dir), f"checkpoint-{self.state.global_step}"))

    @property
    def kept_step(self) -> int | None:
        """The step whose checkpoint is loaded at the end; None: the model stays as the last step left it."""
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        return int(best.rpartition("-")[2]) if best else None

    @property
    def last_step_is_evaluated(self) -> bool:
        """Whether the last step was evaluated, here or before training was interrupted."""
        step = self.state.global_step
        logged = any("eval_loss" in entry and entry["step"] == step for entry in self.state.log_history)
        return logged or self.last_evaluated == step

    def run(self, checkpoint: Path | None = None) -> list[Run]:
        """Train, with an evaluation at the end, and say how it went: one run, or one for each model of ``put_off``."""
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
        losses = [[of_step[number] for of_step in steps] for number in range(len(histories))]
        return [
            Run(curve_of(history), seconds / len(histories), self.eval_seconds / len(histories), own, kept)
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
    notify: Callable[[str], None] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    checkpoint: Path | None = None,
    proximal: ProximalSpec | None = None,
    moments: Moments | None = None,
    blind: bool = False,
) -> tuple[Run, LoopTrainer]:
    """Train a model that returns ``loss`` and ``logits``; evaluate as ``args`` say: see ``loop_arguments``.

    A proximal term acts on the adapters, and not on modules trained in full, such as a new head. Given ``moments``,
    evaluations are made later, several at a time, and ``blind`` not at all, unless the run itself depends on them.
    Training goes on from ``checkpoint``, if one is given.
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
