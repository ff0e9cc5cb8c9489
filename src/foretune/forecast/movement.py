"""How far a simulated run moves the weights of the network."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretune.linear import Factors, Growth, TangentModel
from foretune.tangents import Tangents, select_layers
from foretune.task import Task
from foretune.task.module_names import layer_numbers

EARLY = 0.1  # share of the steps whose largest is looked for
WINDOWS = 16  # parts of a run over which its training loss is averaged
LEARNT = 0.9  # of the loss of guessing, below which a run has begun to learn


@dataclass(frozen=True)
class Reach:
    """How far a simulated run goes.

    Attributes:
        largest_step: Largest early step, see ``Movement``.
        travel: How far steps of its size would lead, see ``Movement``.
        change_before_learning: How far it goes before it learns, see the function of that name.
        weight_change: Relative change of the adapted weights, see the function of that name.
        layer_changes: Sum of the adapted layers' relative changes, see ``foretune.linear.growth``.
        depth: Share of the network's layers that have adapters, see the function of that name.
        linearity_gap: How far the network is from its tangents at the end, see ``foretune.forecast.network``.
    """

    largest_step: float
    travel: float
    change_before_learning: float
    weight_change: float
    layer_changes: float
    depth: float
    linearity_gap: float


class Movement(TrainerCallback):
    r"""Measures how the network's linear weights change in a simulated run, relative to their size.

    Norms are of all linear layers together but the head's, adapted or not. ∞: the run no longer gives numbers.

    Args:
        size: The norm of the linear weights, see ``linear_norm``.

    Attributes:
        largest_step: :math:`\max_t \frac{\eta}{\eta_t} \lVert\Delta W_{t+1} - \Delta W_t\rVert_F / \lVert W\rVert_F`
            over the first tenth of the steps and those of the warm-up, at their learning rates η_t of η in all.
        changes: :math:`\lVert\Delta W_t\rVert_F / \lVert W\rVert_F` after every step t.
    """

    def __init__(self, size: float) -> None:
        self.size = size
        self.largest_step = 0.0
        self.share = 1.0  # of the learning rate
        self.shares = 0.0  # of all steps
        self.changes: list[float] = []
        self.start: Factors = {}
        self.before: Factors = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the start, as far as it is not zero."""
        self.start = self.before = kwargs["model"].start

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Note which share of the learning rate this step has."""
        rate = float(kwargs["optimizer"].param_groups[0]["lr"])  # some optimisers keep it as a tensor
        self.share = rate / args.learning_rate if args.learning_rate else 1.0
        self.shares += self.share

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure: the whole way at any time, the step while it is early."""
        model: TangentModel = kwargs["model"]
        self.changes.append(_total(model.changes(self.start)) / self.size)
        if state.global_step <= max(last_step(state, EARLY), args.get_warmup_steps(state.max_steps)):
            step = _total(model.changes(self.before)) / self.size
            self.largest_step = max(self.largest_step, step / self.share if self.share else 0.0)
            self.before = _factors(model)

    @property
    def travel(self) -> float:
        r"""How far the weights would go if all steps led one way and were as large as the largest early one.

        .. math:: \textstyle\sum_t \frac{\eta_t}{\eta} \cdot \text{largest step}

        Real runs collapse when it is too large (``docs/truth.md``).
        """
        return self.largest_step * self.shares


def last_step(state: TrainerState, share: float) -> int:
    """The step that completes a share of the run."""
    return max(1, round(share * state.max_steps))


def change_before_learning(changes: Sequence[float], losses: Sequence[float], guess_loss: float) -> float:
    """How far the linear weights have changed when a run begins to fit its training examples.

    That is the first step at which the mean training loss of the last sixteenth of the run is below 0.9 of that of
    guessing; the last one if there is none. What moves far before it has found what to learn seldom finds it: real runs
    then collapse at rates that are no harm to easier tasks (``docs/truth.md``).

    Args:
        changes: Relative changes after every step, see ``Movement``.
        losses: Training loss of every step.
        guess_loss: Loss of guessing.
    """
    window = max(1, len(losses) // WINDOWS)
    means = np.convolve(losses, np.ones(window) / window, "valid")
    (found,) = np.nonzero(means < LEARNT * guess_loss)
    return changes[int(found[0]) + window - 1] if len(found) else changes[-1]


def linear_norm(task: Task, heads: Sequence[str]) -> float:
    """Frobenius norm of all linear layers' weights together, but the head's, whose modules are named."""
    return _norm(select_layers(task.model, "all-linear", heads).values())


def weight_change(task: Task, model: TangentModel) -> float:
    r"""How far a simulated run has moved the adapted weights, relative to their size.

    .. math:: \sqrt{\textstyle\sum_m \lVert\Delta W_m\rVert_F^2 / \sum_m \lVert W_m\rVert_F^2}

    over the adapted layers m, each with its weight W as pretrained and its change since the tangents were taken: what
    they leave out is of second order in it. ∞: the run no longer gives numbers.
    """
    return _total(model.changes()) / _norm(task.model.get_submodule(layer) for layer in model.adapters)


def layer_changes(task: Task, model: TangentModel) -> float:
    r"""Sum over the adapted layers of their relative change in a simulated run.

    .. math:: \rho = \textstyle\sum_m \lVert\Delta W_m\rVert_F / \lVert W_m\rVert_F

    Layers multiply each other, so that what each changes adds up. ∞: the run no longer gives numbers.
    """
    growth = model.growth or growth_of(task, model.tangents, model.adapters)
    return _finite(float(growth.layer_changes(model.changes())))


def depth(task: Task, model: TangentModel) -> float:
    """Share of the network's numbered layers that have adapters; 1 where no layer has a number.

    What real runs learn beyond their tangents they learn in layers that change together: with adapters in half of them
    it was a quarter or less (``docs/log.md``).
    """
    every = layer_numbers(select_layers(task.model, "all-linear", model.head.names))
    return len(layer_numbers(model.adapters)) / len(every) if every else 1.0


def growth_of(task: Task, tangents: Tangents, layers: Iterable[str]) -> Growth:
    """The growth of the features of the task's network, as its weights are, when these layers change."""
    norms = {layer: _norm([task.model.get_submodule(layer)]) for layer in layers}
    return Growth(norms, normalised=len(tangents.normalisation) > 0)


def _factors(model: TangentModel) -> Factors:
    """A copy of the current factors."""
    with torch.no_grad():
        return {
            layer: tuple(factor.clone() for factor in model.factors(adapter))  # type: ignore[misc]
            for layer, adapter in model.adapters.items()
        }


def _total(changes: Mapping[str, Tensor]) -> float:
    """Norm of the changes of all layers together."""
    return _finite(math.hypot(*map(float, changes.values())))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _norm(layers: Iterable[nn.Module]) -> float:
    """Frobenius norm of the layers' weights together, of those that have one."""
    weights = (getattr(layer, "weight", None) for layer in layers)
    sizes = (float(torch.linalg.vector_norm(each.detach())) for each in weights if isinstance(each, Tensor))
    return math.hypot(*sizes)
