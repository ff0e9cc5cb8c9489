"""What a training run gives: its curve, the point whose model is kept, and the time it took."""

from dataclasses import dataclass, field
from typing import Any, TypedDict


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
        kept_step: The step whose model is kept, with ``load_best_model_at_end``; None: the last one.
    """

    curve: list[Point]
    train_seconds: float
    eval_seconds: float
    step_losses: list[float] = field(default_factory=list)
    kept_step: int | None = None

    @property
    def seconds(self) -> float:
        """Time spent in all."""
        return self.train_seconds + self.eval_seconds

    @property
    def final(self) -> Point:
        """The point of the model that is kept."""
        kept = [point for point in self.curve if point["step"] == self.kept_step]
        return kept[-1] if kept else self.curve[-1]


def curve_of(history: list[dict[str, Any]]) -> list[Point]:
    """The curve in a log of ``Trainer``."""
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
