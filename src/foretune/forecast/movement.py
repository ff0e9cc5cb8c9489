"""Measure how far a simulated run moves the weights of the network."""

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

EARLY = 0.1  # share of the steps, at the start, among which the largest one is looked for
WINDOWS = 16  # number of parts of a run; its training loss is averaged over one part at a time
LEARNT = 0.9  # a run has begun to learn when its training loss is below this share of the loss of guessing


@dataclass(frozen=True)
class Reach:
    """How far a simulated run moves the weights, and how far that is from linear; the *reach* of a run.

    Attributes:
        largest_step: Largest relative change of the linear weights in one early step, see ``Movement``.
        travel: Relative change if all steps led one way and were as large as that one, see ``Movement``.
        change_before_learning: Relative change before the run learns, see the function of that name.
        weight_change: Relative change of the adapted weights at the end, see the function of that name.
        layer_changes: Sum of the adapted layers' relative changes at the end, see the function of that name.
        depth: Share of the network's layers that have adapters, see the function of that name.
        linearity_gap: How far the network is from its tangents at the end, see
            ``foretune.forecast.network.linearity_gap``.
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

    A norm is taken over all linear layers together, adapted or not, without those of the head. A value is ∞ if the run
    no longer gives finite numbers.

    Args:
        size: The norm of the linear weights, see ``linear_norm``.

    Attributes:
        largest_step: :math:`\max_t \frac{\eta}{\eta_t} \lVert\Delta W_{t+1} - \Delta W_t\rVert_F / \lVert W\rVert_F`
            over the first tenth of the steps and over the warm-up. η is the learning rate of the run, η_t that of step
            t: a step at a lower rate is scaled up.
        changes: :math:`\lVert\Delta W_t\rVert_F / \lVert W\rVert_F` after every step t.
    """

    def __init__(self, size: float) -> None:
        self.size = size
        self.largest_step = 0.0
        self.share = 1.0  # η_t / η of the current step
        self.shares = 0.0  # the sum of η_t / η over all steps so far
        self.changes: list[float] = []
        self.start: Factors = {}  # adapters before the run
        self.before: Factors = {}  # adapters before the current step

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the adapters that the run starts from, if their product is not zero."""
        self.start = self.before = kwargs["model"].start

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Record the learning rate of this step as a share of the run's learning rate."""
        rate = float(kwargs["optimizer"].param_groups[0]["lr"])  # some optimisers keep it as a tensor
        self.share = rate / args.learning_rate if args.learning_rate else 1.0
        self.shares += self.share

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure the change since the start, and during the first tenth also the change of this step."""
        model: TangentModel = kwargs["model"]
        self.changes.append(_total(model.changes(self.start)) / self.size)
        if state.global_step <= max(last_step(state, EARLY), args.get_warmup_steps(state.max_steps)):
            step = _total(model.changes(self.before)) / self.size
            self.largest_step = max(self.largest_step, step / self.share if self.share else 0.0)
            self.before = _factors(model)

    @property
    def travel(self) -> float:
        r"""The relative change of the weights if all steps led one way and were as large as the largest early step.

        .. math:: \textstyle\sum_t \frac{\eta_t}{\eta} \cdot \text{largest step}

        Real runs collapse if it is too large (``docs/truth.md``).
        """
        return self.largest_step * self.shares


def last_step(state: TrainerState, share: float) -> int:
    """Return the number of the step that completes a share of the run."""
    return max(1, round(share * state.max_steps))


def change_before_learning(changes: Sequence[float], losses: Sequence[float], guess_loss: float) -> float:
    """Return how far the linear weights have changed when a run begins to learn.

    A run begins to learn at the first step where its training loss, averaged over the preceding sixteenth of the run,
    is below 0.9 of the loss of guessing. If there is no such step, the last step counts. A run that moves far before it
    learns seldom learns at all: real runs on hard tasks collapse at rates that do no harm on easier tasks
    (``docs/truth.md``).

    Args:
        changes: Relative change after every step, see ``Movement``.
        losses: Training loss of every step.
        guess_loss: Loss of guessing.

    Returns:
        The relative change at that step.
    """
    window = max(1, len(losses) // WINDOWS)
    means = np.convolve(losses, np.ones(window) / window, "valid")
    (learning,) = np.nonzero(means < LEARNT * guess_loss)
    return changes[int(learning[0]) + window - 1] if len(learning) else changes[-1]


def linear_norm(task: Task, heads: Sequence[str]) -> float:
    """Return the Frobenius norm of the weights of all linear layers together, without the modules in ``heads``."""
    return _norm(select_layers(task.model, "all-linear", heads).values())


def weight_change(task: Task, model: TangentModel) -> float:
    r"""Return how far a simulated run has moved the adapted weights, relative to their size.

    .. math:: \sqrt{\textstyle\sum_m \lVert\Delta W_m\rVert_F^2 / \sum_m \lVert W_m\rVert_F^2}

    The sums run over the adapted layers m, with the pretrained weight W_m and its change ΔW_m since the tangents were
    taken. What the tangents leave out is of second order in ΔW.

    Args:
        task: The task.
        model: The tangent model at the end of the run.

    Returns:
        The relative change; ∞ if the run no longer gives finite numbers.
    """
    return _total(model.changes()) / _norm(task.model.get_submodule(layer) for layer in model.adapters)


def layer_changes(task: Task, model: TangentModel) -> float:
    r"""Return the sum of the adapted layers' relative changes in a simulated run.

    .. math:: \rho = \textstyle\sum_m \lVert\Delta W_m\rVert_F / \lVert W_m\rVert_F

    The network is a product of its layers, so relative changes of layers add up.

    Args:
        task: The task.
        model: The tangent model at the end of the run.

    Returns:
        ρ; ∞ if the run no longer gives finite numbers.
    """
    growth = model.growth or growth_of(task, model.tangents, model.adapters)
    return _finite(float(growth.layer_changes(model.changes())))


def depth(task: Task, model: TangentModel) -> float:
    """Return the share of the network's numbered layers that have adapters.

    Real runs learn more than their tangents show in layers that change together. With adapters in half of the layers
    this was a quarter or less (``docs/log.md``).

    Args:
        task: The task.
        model: The tangent model with the adapters.

    Returns:
        The share; 1 if no layer has a number.
    """
    all_numbers = layer_numbers(select_layers(task.model, "all-linear", model.head.names))
    return len(layer_numbers(model.adapters)) / len(all_numbers) if all_numbers else 1.0


def growth_of(task: Task, tangents: Tangents, layers: Iterable[str]) -> Growth:
    """Return how the features of the network outgrow their tangents when these layers change.

    Args:
        task: The task, whose network has the weights at which the tangents were taken.
        tangents: The tangents.
        layers: Names of the adapted layers.

    Returns:
        The growth of the features, for a ``TangentModel``.
    """
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
    """The norm of the changes of all layers together."""
    return _finite(math.hypot(*map(float, changes.values())))


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.inf


def _norm(layers: Iterable[nn.Module]) -> float:
    """The Frobenius norm of the weights of these layers together; layers without a weight do not count."""
    weights = (getattr(layer, "weight", None) for layer in layers)
    sizes = (float(torch.linalg.vector_norm(weight.detach())) for weight in weights if isinstance(weight, Tensor))
    return math.hypot(*sizes)
