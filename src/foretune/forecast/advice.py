"""What to know before believing a forecast, in plain words."""

import math
from collections.abc import Sequence

from foretune.forecast.calibration import UNSTABLE, unstable
from foretune.forecast.network import Gaps
from foretune.forecast.simulate import accepts_loss_kwargs
from foretune.task import Candidate, Task
from foretune.train.loop import Point

GAP = 0.9  # linearity gap from which forecasts were seen to be off by more than 5 points (docs/truth.md)
RISE = 1.1  # eval loss at the end over its best, from which a run is called over-fitting


def advice(curve: Sequence[Point], candidate: Candidate, task: Task, gaps: Gaps) -> list[str]:
    """Warnings about a candidate: unstable, beyond the tangents, over-fitting, no learning, traps of arguments."""
    said = []
    if unstable(gaps.early):
        said.append(
            f"the first tenth of the run already leaves the tangents (early linearity gap above {UNSTABLE}): such runs "
            "can collapse and learn nothing, whatever the forecast says; lower the learning rate or the scaling"
        )
    elif gaps.end > GAP:
        said.append(
            f"training leaves the region where the tangents hold (linearity gap above {GAP}): the forecast rests on "
            "what such runs did on other tasks, and its error bar is wider; --refreshes 2 follows this one further"
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
