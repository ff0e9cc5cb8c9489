"""The result of a training run: its curve, the point whose model is kept, and the time that it took."""

from dataclasses import dataclass, field
from typing import Any, TypedDict


class Point(TypedDict):
    """A point of a curve.

    Attributes:
        step: Number of optimiser steps so far.
        epoch: Epochs so far.
        train_loss: Mean training loss of the steps since the last log entry; None before the first step.
        eval_loss: Mean loss of the evaluation examples.
        eval_metric: Metric of the evaluation examples.
    """

    step: int
    epoch: float
    train_loss: float | None
    eval_loss: float
    eval_metric: float


@dataclass(frozen=True)
class Run:
    """The result of a training run.

    Attributes:
        curve: Points before the first step, at the end, and in between as often as ``eval_strategy`` says.
        train_seconds: Time spent in steps.
        eval_seconds: Time spent in evaluations.
        step_losses: Training loss of every step, as ``Trainer`` logs it.
        kept_step: The step whose model is kept with ``load_best_model_at_end``; None if that is the last step.
    """

    curve: list[Point]
    train_seconds: float
    eval_seconds: float
    step_losses: list[float] = field(default_factory=list)
    kept_step: int | None = None

    @property
    def seconds(self) -> float:
        """Time spent in steps and evaluations."""
        return self.train_seconds + self.eval_seconds

    @property
    def final(self) -> Point:
        """The point of the curve whose model is kept."""
        kept = [point for point in self.curve if point["step"] == self.kept_step]
        return kept[-1] if kept else self.curve[-1]


def curve_of(history: list[dict[str, Any]]) -> list[Point]:
    """Read the curve from the log history of ``Trainer``."""
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
