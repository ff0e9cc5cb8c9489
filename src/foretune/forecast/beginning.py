"""Train the beginning of a real run that may collapse.

If the steps of a run change too much of the network's weights, most such runs collapse and some do well. Neither the
simulation nor the first tenth of the real run tells which (``docs/log.md``). The training loss of the first three
eighths mostly does. So these runs, and no others, are *begun*: their first steps are really trained, with the seed, the
batches and the schedule of the whole run.
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretune.errors import InputError
from foretune.results import provenance, read_json, write_json
from foretune.task import Candidate, Task
from foretune.train import build_peft_model, loop_arguments, run_trainer
from foretune.train.arguments import without_choice

BEGIN = 0.375  # share of the steps that is trained
LEAST = 0.1  # share of the loss of guessing; a simulation that learnt less is treated as if it had learnt this much
_NO_FILES = {"save_strategy": "no", "push_to_hub": False, "report_to": "none"}


@dataclass(frozen=True)
class Beginning:
    """The result of the beginning of a real run.

    Losses are means over the second half of its steps, as ``Trainer`` logs them.

    Attributes:
        steps: Number of steps that were trained.
        max_steps: Number of steps of the whole run.
        train_loss: Training loss of the real run.
        simulated_loss: Training loss of its simulation in the same steps.
        guess_loss: Loss of guessing, which is the best constant prediction for all training examples.
        seconds: Time that it took.
    """

    steps: int
    max_steps: int
    train_loss: float
    simulated_loss: float
    guess_loss: float
    seconds: float

    @property
    def followed(self) -> float:
        """How much of what the simulation learnt the real run learnt too, from 0 to 1.

        What a run learnt is the loss of guessing minus its training loss.
        """
        simulated = max(self.guess_loss - self.simulated_loss, LEAST * self.guess_loss)
        share = (self.guess_loss - self.train_loss) / simulated
        return min(max(share, 0.0), 1.0) if share == share else 0.0  # 0 if a loss is nan


class _Stop(TrainerCallback):
    """Ends a run after a share of its steps."""

    def __init__(self, share: float) -> None:
        self.share = share

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        control.should_training_stop = state.global_step >= self.share * state.max_steps


def begin(
    task: Task,
    candidate: Candidate,
    simulated: Sequence[float],
    *,
    share: float = BEGIN,
    directory: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    notify: Callable[[str], None] | None = None,
) -> Beginning:
    """Train the first steps of a candidate's real run.

    Args:
        task: Model, data and loss.
        candidate: The candidate, trained from its own seed.
        simulated: Training losses of its simulated run, step by step.
        share: Share of the steps to train, rounded up to whole steps.
        directory: The run directory, where losses are kept in ``begun/<name>.json``. Losses of the same task,
            configuration and share are used again.
        progress: Called with the number of steps done and of all steps of the whole run.
        notify: Called with a sentence about kept losses that cannot be used, so that the beginning is made again.

    Returns:
        The losses of the real run beside those of the simulation.
    """
    path = directory and directory / "begun" / f"{candidate.name}.json"
    settings = {"task": task.identity, "share": share, **candidate.to_json()} if path else {}
    kept = path and _kept(path, settings, notify or (lambda _: None))
    if kept:
        losses, seconds = [math.nan if loss is None else loss for loss in kept["losses"]], kept["wall_seconds"]
    else:
        with tempfile.TemporaryDirectory() as scratch:
            run, trainer = run_trainer(
                build_peft_model(task, candidate, candidate.seed),
                candidate.training_arguments(scratch, **_arguments(candidate)),
                task.train,
                task.eval,
                task.compute_metrics,
                collator=task.collator,
                tokenizer=task.tokenizer,
                progress=progress,
                callbacks=[_Stop(share)],
                proximal=candidate.proximal,
                blind=True,
            )
        losses, seconds = run.step_losses, run.train_seconds
        if path:
            path.parent.mkdir(exist_ok=True)
            write_json(path, provenance(candidate.seed, seconds, trainer.args.device) | settings | {"losses": losses})
    steps = len(losses)
    second_half = slice(steps // 2, steps)
    return Beginning(
        steps=steps,
        max_steps=len(simulated),
        train_loss=float(np.mean(losses[second_half])),
        simulated_loss=float(np.mean(simulated[second_half])),
        guess_loss=task.guess_loss,
        seconds=seconds,
    )


def _arguments(candidate: Candidate) -> dict[str, Any]:
    """The arguments that differ from the user's own: the beginning saves nothing and chooses no checkpoint."""
    return loop_arguments(candidate.training) | _NO_FILES | without_choice(candidate.training)


def _kept(path: Path, settings: dict[str, Any], notify: Callable[[str], None]) -> dict[str, Any] | None:
    """The content of ``path`` if it is whole and has these settings; otherwise None, and it will be replaced."""
    if not path.exists():
        return None
    try:
        kept = read_json(path, "")
    except InputError as error:
        notify(f"{path}: {error.found}; the beginning is made again")
        return None
    return kept if settings.items() <= kept.items() else None
