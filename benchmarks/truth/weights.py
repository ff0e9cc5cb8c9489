"""KappaTune: layers ordered by the condition number of their pretrained weights; it sees neither texts nor labels."""

import math
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from truth.predictors import Scores, kept
from truth.selection import by_mean, by_overlap, linear_layers

from foretune.task import Task

TOP = 0.2  # share of the layers that ``find_kappa_target_modules`` chooses by default


def condition_number(weight: Float[Tensor, "o i"]) -> float:
    """``σ_1/(σ_last + 1e-8)`` in single precision, as peft computes it.

    >>> round(condition_number(torch.diag(torch.tensor([6.0, 3.0]))), 4)
    2.0
    """
    values = torch.linalg.svdvals(weight.detach().float())
    return float(values[0] / (values[-1] + 1e-8))


def condition_numbers(task: Task, folder: Path) -> tuple[dict[str, float], float]:
    """κ(W) of every linear layer but the head's, and the seconds that it took."""

    def work() -> dict[str, float]:
        return {name: condition_number(layer.weight) for name, layer in linear_layers(task).items()}

    return kept(folder / "figures" / "weights.json", work)


def kappatune(task: Task, folder: Path) -> Scores:
    """Overlap with the fifth of the layers whose κ(W) is lowest (arXiv 2506.16289; ``peft/helpers.py``).

    The authors choose weights of low κ because these keep what was learnt in pretraining. Tested here is whether such
    runs also learn the task better.
    """
    values, seconds = condition_numbers(task, folder)
    chosen = sorted(values, key=values.__getitem__)[: max(1, int(len(values) * TOP))]
    return by_overlap(task, chosen, seconds)


def kappatune_mean(task: Task, folder: Path) -> Scores:
    """Mean of ``-log κ(W)`` over a candidate's layers: the same order of layers without a threshold."""
    values, seconds = condition_numbers(task, folder)
    return by_mean(task, {name: -math.log(value) for name, value in values.items()}, seconds)
