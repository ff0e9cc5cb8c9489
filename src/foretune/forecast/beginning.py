"""The beginning of a real run that may collapse.

Of runs whose steps change too much of the network's weights most collapse and some do well. Nothing about their
simulation or the first tenth of the real run tells which (``docs/log.md``), the training loss of its first three
eighths mostly does. So these runs, and no others, are begun for real: with the seed, the batches and the schedule of
the whole run.
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

BEGIN = 0.375  # share of the steps
LEAST = 0.1  # of the loss of guessing, that a simulation must have learnt for a real run to be held against it
_NO_FILES = {"save_strategy": "no", "push_to_hub": False, "report_to": "none"}


@dataclass(frozen=True)
class Beginning:
    """What a real run did in its beginning; losses are means over the last half of it, as ``Trainer`` logs them.

    Attributes:
        steps: Steps that were made.
        max_steps: Steps of the whole run.
        train_loss: Its training loss.
        simulated_loss: That of its simulation in the same steps.
        guess_loss: That of saying the same of every training example.
        seconds: Time it took.
    """

    steps: int
    max_steps: int
    train_loss: float
    simulated_loss: float
    guess_loss: float
    seconds: float

    @property
    def followed(self) -> float:
        """How much of what the simulation learnt the real run learnt too, from 0 to 1."""
        promised = max(self.guess_loss - self.simulated_loss, LEAST * self.guess_loss)
        share = (self.guess_loss - self.train_loss) / promised
        return min(max(share, 0.0), 1.0) if share == share else 0.0  # 0 where a loss is not a number


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
    """Train a candidate for the first share of its steps.

    Args:
        task: Model, data and loss.
        candidate: What to begin, from its own seed.
        simulated: Training losses of its simulated run, step by step.
        share: Of the steps, rounded up.
        directory: Keep the losses there, in ``begun/<name>.json``; those of the same task, configuration and share are
            used again.
        progress: Called with steps done and the steps of the whole run.
        notify: Called with a sentence about a beginning in ``directory`` that cannot be used and is made again.
    """
    path = directory and directory / "begun" / f"{candidate.name}.json"
    asked = {"task": task.identity, "share": share, **candidate.to_json()} if path else {}
    kept = path and _kept(path, asked, notify or (lambda _: None))
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
            write_json(path, provenance(candidate.seed, seconds, trainer.args.device) | asked | {"losses": losses})
    steps = len(losses)
    looked_at = slice(steps // 2, steps)
    return Beginning(
        steps=steps,
        max_steps=len(simulated),
        train_loss=float(np.mean(losses[looked_at])),
        simulated_loss=float(np.mean(simulated[looked_at])),
        guess_loss=task.guess_loss,
        seconds=seconds,
    )


def _arguments(candidate: Candidate) -> dict[str, Any]:
    """What the beginning sets beside the user's own arguments: it saves nothing and chooses no checkpoint."""
    return loop_arguments(candidate.training) | _NO_FILES | without_choice(candidate.training)


def _kept(path: Path, asked: dict[str, Any], notify: Callable[[str], None]) -> dict[str, Any] | None:
    """A beginning that was kept, if it is what is asked for; one of anything else is made again, and replaced."""
    if not path.exists():
        return None
    try:
        kept = read_json(path, "")
    except InputError as error:
        notify(f"{path}: {error.found}; the beginning is made again")
        return None
    return kept if asked.items() <= kept.items() else None
