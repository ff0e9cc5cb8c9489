"""Postpone evaluations, and make several of them at a time."""

from collections.abc import Callable
from typing import Any

from torch import nn

from foretune.linear import Moments

TOGETHER = 16  # how many moments of a run are evaluated together; every moment is a copy of the trained parameters


class PutOff:
    """The postponed evaluations of one or more models, and the log histories that they belong to.

    Args:
        moments: Keeps copies of the parameters that are to be evaluated.
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.histories: list[list[dict[str, Any]]] = [[] for _ in moments.models]
        self.pending: list[list[dict[str, Any]]] = []  # entries of the histories that are not evaluated yet

    def take(self, step: int, epoch: float) -> None:
        """Copy the parameters at this step, to evaluate them later."""
        self.moments.take()
        self.pending.append([{"step": step, "epoch": epoch} for _ in self.histories])
        for history, entry in zip(self.histories, self.pending[-1], strict=True):
            history.append(entry)

    def settle(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Make the postponed evaluations, and write their results into the histories.

        Args:
            evaluate: Evaluates a model that stands in for a moment of a run.
        """
        for entries, stand_ins in zip(self.pending, self.moments.recall(), strict=True):
            for entry, stand_in in zip(entries, stand_ins, strict=True):
                entry.update(evaluate(stand_in))
        self.pending.clear()
