"""How the pages of the truth benchmark write numbers: every metric in its own unit."""

from typing import Any

import numpy as np
from paper.reading import MODELS

POINTS = 100  # hundredths of a metric: points where it is accuracy
SIGNIFICANT = 0.05  # of the metric: a forecast that is further off is called far off


def number(value: float, digits: int, scale: float = 1, unit: str = "") -> str:
    """A number, or a dash where it is not known."""
    return "–" if np.isnan(value) else f"{scale * value:.{digits}f}{unit}"


def metric(value: float, task: dict[str, Any]) -> str:
    """A value or a difference of a task's metric: accuracy in percent or points, Pearson's r in its own unit."""
    return number(value, 1, POINTS) if task["metric_name"] == "accuracy" else number(value, 3)


def hundredths(value: float) -> str:
    """A mean over tasks of different metrics, in hundredths of them."""
    return number(value, 1, POINTS)


def percent(value: float, digits: int = 0) -> str:
    """A share."""
    return number(value, digits, 100, "%")


def model(task: dict[str, Any]) -> str:
    """A task's model, for reading."""
    return MODELS[task["model"]]
