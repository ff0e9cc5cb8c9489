"""Estimate the accuracy of a real run, whose outputs are near the simulated outputs but not equal to them."""

from typing import Any

import numpy as np
from jaxtyping import Float, Int
from scipy.stats import norm

from foretune.task import Task

WIDTH = 0.2  # width of the smoothing, as a share of the margins' standard deviation (docs/log.md)


def expected_metrics(task: Task, logits: Any, labels: Any) -> dict[str, float]:
    """Compute the expected metric of a real run from simulated outputs.

    Args:
        task: The task.
        logits: Simulated outputs of the evaluation examples.
        labels: Their labels.

    Returns:
        ``{"eval_metric": ...}``: the smoothed accuracy if the metric is accuracy and the smoothed value is finite,
        otherwise what ``Task.compute_metrics`` returns.
    """
    metrics = task.compute_metrics(logits, labels)
    if task.metric_name != "accuracy":
        return metrics
    smoothed = smoothed_accuracy(np.asarray(logits, dtype=np.float64), np.asarray(labels))
    return {"eval_metric": smoothed} if np.isfinite(smoothed) else metrics


def smoothed_accuracy(logits: Float[np.ndarray, "n c"], labels: Int[np.ndarray, " n"]) -> float:
    r"""Return the accuracy, where an example whose margin is near zero counts in part.

    .. math:: \frac1n \sum_i K(m_i / h),\quad K(u) = \Phi(u) + \tfrac12 u\,\varphi(u),\quad
              m_i = f_{i, y_i} - \max_{c \ne y_i} f_{i, c},\quad h = \mathrm{WIDTH} \cdot \mathrm{std}(m)

    The margin m is the output of the right class minus the largest other output. It depends on chance on which side of
    the boundary a nearby example falls. Counting the simulation's examples would add its chance errors to those of the
    real run, and smoothing removes them. K is the integral of the Gaussian kernel of fourth order, so smoothing changes
    the expected accuracy only by terms of order h⁴. Source: N. Glick, Pattern Recognition 10 (1978); S. Snapinn and
    J. Knoke, Technometrics 27 (1985).

    Args:
        logits: Outputs.
        labels: Numbers of the right classes.

    Returns:
        The smoothed accuracy, from 0 to 1; nan if margins are not finite or all equal.
    """
    rows = np.arange(len(labels))
    others = logits.copy()
    others[rows, labels] = -np.inf
    margins = logits[rows, labels] - others.max(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        u = margins / (WIDTH * margins.std())
        share = (norm.cdf(u) + u * norm.pdf(u) / 2).mean()
    return float(np.clip(share, 0.0, 1.0))
