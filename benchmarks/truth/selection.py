"""Scores of candidates from methods that choose layers.

There are two scores, both at the settings of the method's authors. *Overlap* is the Jaccard index of the layers that
the method chooses and those that a candidate adapts; it is 1 for the configuration that the authors would train. *Mean*
is the mean over a candidate's layers of the figure by which the method orders layers, higher first. Neither looks at
ranks or learning rates, so candidates that differ only in these tie.
"""

import re
from collections.abc import Collection, Mapping

from torch import nn
from truth.predictors import Scores, scored

from foretune.tangents.collect import select_layers
from foretune.tangents.head import head_names
from foretune.task import Candidate, Task
from foretune.task.matching import AdaptedModule, adaptation


def linear_layers(task: Task) -> dict[str, nn.Linear]:
    """Every linear layer but the head's, which is new and always trained in full."""
    layers = select_layers(task.model, "all-linear", head_names(task.model))
    return {name: layer for name, layer in layers.items() if isinstance(layer, nn.Linear)}


def adapted(task: Task, candidate: Candidate) -> tuple[AdaptedModule, ...]:
    """The layers that a candidate adapts."""
    return adaptation(task.model, candidate, candidate.name).modules


def block_of(name: str) -> int | None:
    """Number of the transformer block that a module or parameter is in.

    >>> block_of("encoder.layer.3.output.dense")
    3
    """
    found = re.search(r"\.(\d+)\.", name)
    return int(found[1]) if found else None


def kind_of(name: str) -> str:
    """The type of a module: its name without the number of its block.

    >>> kind_of("encoder.layer.3.output.dense")
    'encoder.layer.output.dense'
    """
    return re.sub(r"\.\d+\.", ".", name)


def by_overlap(task: Task, chosen: Collection[str], shared_seconds: float) -> Scores:
    """Scores by the overlap of a candidate's layers with those that were chosen."""

    def rank(candidate: Candidate) -> float:
        names = {module.name for module in adapted(task, candidate)}
        return len(names & set(chosen)) / len(names | set(chosen))

    return scored(task, rank, shared_seconds)


def by_mean(task: Task, preference: Mapping[str, float], shared_seconds: float) -> Scores:
    """Scores by the mean preference for a candidate's layers."""

    def rank(candidate: Candidate) -> float:
        values = [preference[module.name] for module in adapted(task, candidate)]
        return sum(values) / len(values)

    return scored(task, rank, shared_seconds)
