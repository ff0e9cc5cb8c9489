"""What to know before believing a forecast, in plain words."""

import math
from collections.abc import Sequence

from foretune.forecast.simulate import accepts_loss_kwargs
from foretune.task import Candidate, Task
from foretune.train.loop import Run

GAP = 0.55  # linearity gap from which forecasts were seen to be biased (docs/fidelity.md)
RISE = 1.1  # eval loss at the end over its best, from which a run is called over-fitting


def advice(candidate: Candidate, task: Task, runs: Sequence[Run], linearity_gap: float) -> list[str]:
    """Warnings about a candidate: beyond the tangents, over-fitting, no learning, divergence, traps of arguments."""
    said = []
    if linearity_gap > GAP:
        said.append(
            f"training leaves the region where the tangents hold (linearity gap above {GAP}): a real run fits more "
            "than its forecast, and its metric is often some points higher; --refreshes 2 follows it further"
        )
    values = [point["eval_loss"] for point in runs[0].curve]
    if not all(math.isfinite(value) for value in values):
        said.append("the simulated run diverges: lower the learning rate")
    elif values[-1] > RISE * min(values):
        best = runs[0].curve[values.index(min(values))]
        said.append(
            f"eval loss is lowest at epoch {best['epoch']:g} and rises after: the real run over-fits harder than its "
            "tangents show, so expect a higher eval loss, and consider stopping there"
        )
    if all(math.isfinite(value) for value in values) and min(values) >= 0.99 * values[0]:
        said.append("eval loss does not fall: this candidate learns little that carries over")
    if int(candidate.training.get("gradient_accumulation_steps", 1)) > 1 and accepts_loss_kwargs(task):
        said.append(
            f"Trainer adds the losses of accumulated batches for {type(task.model).__name__} instead of averaging them "
            "(its forward takes keyword arguments): the gradient is that many times larger; the forecast does the same"
        )
    return said
