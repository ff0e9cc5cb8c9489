"""What to know before believing a forecast, in plain words."""

import math
from collections.abc import Sequence

from foretune.forecast.beginning import Beginning
from foretune.forecast.calibration import (
    ASTRAY,
    LATE,
    LOST,
    TRAVEL,
    MeanPoint,
    is_lost,
    late,
    may_collapse,
    much_open,
    unlearnt,
    unstable,
)
from foretune.forecast.compare import Z_90
from foretune.forecast.movement import Reach
from foretune.forecast.simulate import accepts_loss_kwargs
from foretune.task import Candidate, Task

WIDE = 0.11  # half of the 90% interval of the metric from which a forecast is said to be uncertain (docs/truth.md)
RISE = 1.1  # eval loss at the end over its best, from which a run is called over-fitting


def advice(
    curve: Sequence[MeanPoint],
    candidate: Candidate,
    task: Task,
    reach: Reach,
    fitted_loss: float,
    frozen: float,
    beginning: Beginning | None = None,
    gains_little: bool = False,
) -> list[str]:
    """Warnings about a candidate: unstable, uncertain, over-fitting, no learning, traps of arguments.

    Args:
        curve: What is forecast.
        candidate: Whose forecast it is.
        task: What it is trained on.
        reach: How far the simulated run goes.
        fitted_loss: Its loss of the training examples at the end.
        frozen: What the features tell of the labels before training.
        beginning: Of the real run, if that was begun.
        gains_little: Whether it ends near guessing even as simulated.
    """
    said, metric_std = [], curve[-1]["eval_metric_std"]
    if may_collapse(reach.largest_step, reach.travel, reach.change_before_learning):
        said.append(
            f"{_movement(reach)} runs can collapse and learn nothing{_begun(beginning, reach, gains_little)}; "
            "lower the learning rate or the scaling"
        )
    elif late(reach.change_before_learning):
        said.append(
            f"{_change(reach)}: above {LATE:.1%} runs learn features that their tangents do not have, and end further "
            "from their forecast than others; hold it against a real run"
        )
    elif unlearnt(fitted_loss, task.num_outputs):
        said.append(
            f"it ends before it has learnt (training loss {fitted_loss:.2g} of {math.log(task.num_outputs):.2g}): of "
            f"{task.num_outputs} classes such runs were seen to end up to 10 points below their forecast; train longer "
            "or at a higher rate, or hold it against a real run"
        )
    elif much_open(frozen, reach.layer_changes):
        said.append(
            f"features tell the labels in part before training (leave-one-out correlation {frozen:.2f}) and its "
            f"layers move far (by {reach.layer_changes:.2g} in sum): such runs learn what their tangents do not tell, "
            "and end further from their forecast than others; hold it against a real run"
        )
    elif metric_std is not None and Z_90 * metric_std >= WIDE:
        said.append(
            f"its error bar is wide, ±{100 * Z_90 * metric_std:.0f} points: that much did such runs of other tasks "
            f"(linearity gap {reach.linearity_gap:.2f}) differ from what their simulation told; hold it against a real "
            "run"
        )
    if candidate.training.get("lr_scheduler_type") in ("constant", "constant_with_warmup"):
        said.append(
            "its learning rate does not fall: such a run ends wherever its last steps leave it, 4 points from another "
            "seed's on average where that was measured; let it fall (lr_scheduler_type: linear), or train several seeds"
        )
    values = [point["eval_loss"] for point in curve]
    if not all(math.isfinite(value) for value in values):
        said.append("the simulated run diverges: lower the learning rate")
    elif values[-1] > RISE * min(values):
        best = curve[values.index(min(values))]
        said.append(f"eval loss is lowest at epoch {best['epoch']:g} and rises after: consider stopping there")
    if all(math.isfinite(value) for value in values) and min(values) >= 0.99 * values[0]:
        said.append("eval loss does not fall: this candidate learns little that carries over")
    if int(candidate.training.get("gradient_accumulation_steps", 1)) > 1 and accepts_loss_kwargs(task):
        said.append(
            f"Trainer adds the losses of accumulated batches for {type(task.model).__name__} instead of averaging them "
            "(its forward takes keyword arguments): the gradient is that many times larger; the forecast does the same"
        )
    return said


def _movement(reach: Reach) -> str:
    """Why a run may collapse."""
    if reach.change_before_learning <= ASTRAY:
        steps = f"steps that change the network's linear weights by {reach.largest_step:.1%}"
        return f"{steps} may lead {reach.travel:.0%} of their size away by the end: above {TRAVEL:.0%}"
    return f"{_change(reach)}: above {ASTRAY:.1%}"


def _change(reach: Reach) -> str:
    return f"the network's linear weights change by {reach.change_before_learning:.2%} before the training loss falls"


def _begun(beginning: Beginning | None, reach: Reach, gains_little: bool) -> str:
    """What the real beginning, or that none is needed, adds to the warning of a collapse."""
    if is_lost(reach.largest_step, reach.travel):
        return f", and above {LOST:.0%} all that were seen did"
    if gains_little:
        return ", and even as simulated this one gains little over guessing"
    if beginning is None:
        return ", whatever the forecast says"
    losses = (
        f"training loss {beginning.train_loss:.3g}, simulated {beginning.simulated_loss:.3g}, of guessing "
        f"{beginning.guess_loss:.3g}"
    )
    verdict = "does" if unstable(beginning.followed) else "does not, so far"
    return f"; begun for {beginning.steps} of {beginning.max_steps} steps, this one {verdict} ({losses})"
