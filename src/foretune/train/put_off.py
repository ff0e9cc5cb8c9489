"""Evaluations that are made after training, several at a time."""

from collections.abc import Callable
from typing import Any

from torch import nn

from foretune.linear import Moments

TOGETHER = 16  # moments that are evaluated together: each is a copy of what is trained


class PutOff:
    """Evaluations of models that are made later, several at a time, and the histories that they belong to.

    Args:
        moments: Keeps what is to be evaluated.
    """

    def __init__(self, moments: Moments) -> None:
        self.moments = moments
        self.histories: list[list[dict[str, Any]]] = [[] for _ in moments.models]
        self.pending: list[list[dict[str, Any]]] = []  # entries of the histories without their evaluations yet

    def take(self, step: int, epoch: float) -> None:
        """Note that there is something to evaluate."""
        self.moments.take()
        self.pending.append([{"step": step, "epoch": epoch} for _ in self.histories])
        for history, entry in zip(self.histories, self.pending[-1], strict=True):
            history.append(entry)

    def settle(self, evaluate: Callable[[nn.Module], dict[str, float]]) -> None:
        """Make the evaluations."""
        for entries, stand_ins in zip(self.pending, self.moments.recall(), strict=True):
            for entry, stand_in in zip(entries, stand_ins, strict=True):
                entry.update(evaluate(stand_in))
        self.pending.clear()
