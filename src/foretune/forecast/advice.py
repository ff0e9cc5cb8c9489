"""Warnings about a forecast: what may make the real run end elsewhere, and what to do about it."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from foretune.forecast.beginning import Beginning
from foretune.forecast.calibration import (
    ASTRAY,
    LATE,
    TRAVEL,
    MeanPoint,
    late,
    may_collapse,
    much_open,
    unlearnt,
    unstable,
)
from foretune.forecast.compare import Z_90
from foretune.forecast.movement import Reach
from foretune.forecast.simulate import accepts_loss_kwargs
from foretune.tangents import mixture_of_experts
from foretune.task import Candidate, Task
from foretune.task.module_names import folded

WIDE = 0.11  # a forecast is called uncertain if half of its metric's 90% interval is at least this (docs/accuracy.md)
RISE = 1.1  # a run is said to over-fit if its last eval loss is more than this many times its best one

# Every kind of warning, the worst first, with what it means and what to do.
HEADLINES = {
    "diverges": "the simulation diverges: lower the learning rate",
    "collapse": "the run may collapse and learn nothing: lower the learning rate or lora_alpha",
    "experts": "tokens may be sent to other experts during training, which no forecast follows: train it first",
    "late": "the run learns features that the forecast cannot follow: train it before you rely on its forecast",
    "unlearnt": "the run ends before it has learnt: train longer or at a higher rate",
    "open": "the run learns more than its first-order picture shows: train it before you rely on its forecast",
    "wide": "the error bar is wide: train it before you rely on its forecast",
    "little": "eval loss does not fall: the run learns little that carries over to new texts",
    "overfits": "eval loss rises towards the end: stop earlier, or set load_best_model_at_end",
    "constant": "the learning rate never falls, so chance decides where a run ends: use a falling schedule",
    "accumulation": "Trainer adds up the losses of accumulated batches for this model; the forecast does the same",
}


class Advice(NamedTuple):
    """A warning about a candidate.

    Attributes:
        kind: A key of ``HEADLINES``.
        text: Sentences that give the numbers of this candidate.
    """

    kind: str
    text: str


def advice(
    curve: Sequence[MeanPoint],
    candidate: Candidate,
    task: Task,
    reach: Reach,
    fitted_loss: float,
    frozen: float,
    beginning: Beginning | None = None,
    gains_little: bool = False,
) -> list[Advice]:
    """Collect the warnings about a candidate.

    Args:
        curve: The forecast curve.
        candidate: The candidate.
        task: The task.
        reach: How far the simulated run moves the weights.
        fitted_loss: Mean loss of the training examples at the end of the simulated run.
        frozen: Correlation of the labels with their prediction from the features before training.
        beginning: The first steps of the real run, if they were trained.
        gains_little: Whether the simulated run ends near guessing.

    Returns:
        The warnings, the worst first.
    """
    warnings = _about_reach(curve, task, reach, fitted_loss, frozen, beginning, gains_little)
    warnings += _about_curve(curve, candidate)
    if text := about_experts(task.model):
        warnings.append(Advice("experts", text))
    if candidate.training.get("lr_scheduler_type") in ("constant", "constant_with_warmup"):
        text = (
            "The learning rate does not fall. In our measurements, two seeds of such a run ended 4 points apart on "
            "average. Use lr_scheduler_type: linear, or train several seeds."
        )
        warnings.append(Advice("constant", text))
    if int(candidate.training.get("gradient_accumulation_steps", 1)) > 1 and accepts_loss_kwargs(task):
        text = (
            f"The forward pass of {type(task.model).__name__} takes keyword arguments, so Trainer adds the losses of "
            "accumulated batches instead of averaging them. The gradient is that many times larger. The forecast does "
            "the same."
        )
        warnings.append(Advice("accumulation", text))
    order = list(HEADLINES)
    return sorted(warnings, key=lambda warning: order.index(warning.kind))


def about_experts(model: nn.Module) -> str:
    """What to know about the forecasts of a mixture of experts; empty for other models."""
    blocks = mixture_of_experts(model)
    if not blocks:
        return ""
    return (
        f"{type(model).__name__} is a mixture of experts ({', '.join(folded(blocks))}). The forecast keeps every "
        "token with the experts that it had before training. A real run sends tokens to other experts as it learns, so "
        "train a candidate before you rely on its forecast."
    )


def _about_reach(
    curve: Sequence[MeanPoint],
    task: Task,
    reach: Reach,
    fitted_loss: float,
    frozen: float,
    beginning: Beginning | None,
    gains_little: bool,
) -> list[Advice]:
    """The worst warning that follows from how far the simulated run moves the weights, if there is one."""
    metric_std = curve[-1]["eval_metric_std"]
    if may_collapse(reach.largest_step, reach.travel, reach.change_before_learning):
        text = f"{_movement(reach)} {_begun(beginning, gains_little)}"
        return [Advice("collapse", text)]
    if late(reach.change_before_learning):
        text = (
            f"{_change(reach)} Above {LATE:.1%}, real runs learn features that are not in the tangents, and ended "
            "further from their forecast than other runs."
        )
        return [Advice("late", text)]
    if unlearnt(fitted_loss, task.num_outputs):
        text = (
            f"The training loss is {fitted_loss:.2g} at the end; guessing among {task.num_outputs} classes gives "
            f"{math.log(task.num_outputs):.2g}. Such runs ended up to 10 points below their forecast."
        )
        return [Advice("unlearnt", text)]
    if much_open(frozen, reach.layer_changes):
        text = (
            f"Before training, the features predict the labels with a correlation of only {frozen:.2f}, and the layers "
            f"move far (their relative changes add up to {reach.layer_changes:.2g}). Such runs ended further from "
            "their forecast than other runs."
        )
        return [Advice("open", text)]
    if metric_std is not None and Z_90 * metric_std >= WIDE:
        text = (
            f"The 90% interval is ±{100 * Z_90 * metric_std:.0f} points. That is how far real runs of other tasks with "
            f"a similar linearity gap ({reach.linearity_gap:.2f}) were from their forecast."
        )
        return [Advice("wide", text)]
    return []


def _about_curve(curve: Sequence[MeanPoint], candidate: Candidate) -> list[Advice]:
    """Warnings that follow from the forecast curve of the eval loss."""
    losses = [point["eval_loss"] for point in curve]
    if not all(math.isfinite(loss) for loss in losses):
        return [Advice("diverges", "The losses of the simulated run are no longer finite numbers.")]
    warnings = []
    if losses[-1] > RISE * min(losses) and not candidate.training.get("load_best_model_at_end"):
        best = curve[losses.index(min(losses))]
        text = f"The eval loss is {min(losses):.3g} at epoch {best['epoch']:g} and {losses[-1]:.3g} at the end."
        warnings.append(Advice("overfits", text))
    if min(losses) >= 0.99 * losses[0]:
        text = f"The eval loss is {losses[0]:.3g} before training and never below {min(losses):.3g}."
        warnings.append(Advice("little", text))
    return warnings


def _movement(reach: Reach) -> str:
    """The reason why a run may collapse."""
    if reach.change_before_learning <= ASTRAY:
        return (
            f"The largest early step changes the linear weights by {reach.largest_step:.1%}, so all steps may move "
            f"them by {reach.travel:.0%} of their size. Above {TRAVEL:.0%}, some real runs collapsed and learnt "
            "nothing."
        )
    return f"{_change(reach)} Above {ASTRAY:.1%}, some real runs collapsed and learnt nothing."


def _change(reach: Reach) -> str:
    return f"The linear weights change by {reach.change_before_learning:.2%} before the training loss falls."


def _begun(beginning: Beginning | None, gains_little: bool) -> str:
    """What the first steps of the real run say about a collapse, or why they were not trained."""
    if gains_little:
        return "Even the simulation gains little over guessing, so its real run was not begun."
    if beginning is None:
        return "It is not known whether this one does, because its real run was not begun."
    losses = (
        f"training loss {beginning.train_loss:.3g}, simulated {beginning.simulated_loss:.3g}, guessing "
        f"{beginning.guess_loss:.3g}"
    )
    verdict = "is collapsing" if unstable(beginning.followed) else "is not collapsing so far"
    return f"Its real run was begun: after {beginning.steps} of {beginning.max_steps} steps it {verdict} ({losses})."
