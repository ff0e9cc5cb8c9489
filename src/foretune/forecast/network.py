"""Back to the network: the simulated weights put into it, to see how far the tangents hold and to take new ones."""

import math
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from foretune.kernel.bounds import nonlinearity
from foretune.linear import Factors, Growth, TangentModel, replaced
from foretune.tangents import Tangents, all_outputs, centred, collect, evaluating, select_layers
from foretune.task import Task

SAMPLE = 64  # evaluation examples on which the linearity gap is measured
EARLY = 0.1  # share of the steps whose largest is looked for


@contextmanager
def simulated_weights(task: Task, model: TangentModel) -> Generator[None]:
    """Inside the block the task's network has the weights ``W + s B A`` and the head of a simulated run."""
    network, values = task.model, {}
    with torch.no_grad():
        for adapter in model.adapters.values():
            layer = network.get_submodule(adapter.layer)
            a, b = model.factors(adapter)
            change = adapter.scaling * (b @ a)
            weight = layer.get_parameter("weight")
            values[f"{adapter.layer}.weight"] = weight + (change.T if isinstance(layer, Conv1D) else change).to(weight)
        for name, step in zip(model.head.names, model.head.steps, strict=True):
            head = network.get_submodule(name)
            for key, value in step.named_parameters():
                values[f"{name}.{key}"] = value.to(head.get_parameter(key), copy=True)
    with replaced(network, {name: nn.Parameter(value, requires_grad=False) for name, value in values.items()}):
        yield


@contextmanager
def without_growth(model: TangentModel) -> Generator[None]:
    """Inside the block outputs are what the tangents say of the weights."""
    growth, model.growth = model.growth, None
    try:
        yield
    finally:
        model.growth = growth


class Relinearise(TrainerCallback):
    """Takes new tangents at the simulated weights, on the way through a simulated run (theory.md section 6).

    With a learning rate that falls linearly to zero, k refreshes after the shares ``1 - sqrt(1 - i/(k+1))``, i = 1..k,
    of all steps cut the sum of learning rates into equal parts.

    Args:
        task: The task; its model is left as it was.
        refreshes: How often k.
        scratch: A folder for the tangents.
    """

    def __init__(self, task: Task, refreshes: int, scratch: Path) -> None:
        self.task, self.scratch = task, scratch
        self.shares = [1 - (1 - i / (refreshes + 1)) ** 0.5 for i in range(1, refreshes + 1)]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Refresh, if it is time."""
        if any(state.global_step == _last_step(state, share) for share in self.shares):
            model: TangentModel = kwargs["model"]
            with simulated_weights(self.task, model):
                found = collect(
                    self.task,
                    sorted(model.adapters),
                    heads=model.head.names,
                    directory=self.scratch / f"step-{state.global_step}",
                    dtype=model.tangents.dtype,
                    sample=model.tangents.num_train,
                )
                growth = None if model.growth is None else growth_of(self.task, found, model.adapters)
            model.relinearise(found, growth)


@dataclass(frozen=True)
class Reach:
    """How far a simulated run goes.

    Attributes:
        largest_step: Largest early step, see ``LargestStep``.
        weight_change: Relative change of the adapted weights, see the function of that name.
        layer_changes: Sum of the adapted layers' relative changes, see ``foretune.linear.growth``.
        linearity_gap: How far the network is from its tangents at the end, see the function of that name.
    """

    largest_step: float
    weight_change: float
    layer_changes: float
    linearity_gap: float


class LargestStep(TrainerCallback):
    r"""Measures the largest change of the network's linear weights in one step, relative to their size.

    .. math:: \max_t \lVert\Delta W_{t+1} - \Delta W_t\rVert_F / \lVert W\rVert_F

    over the first tenth of the steps and those of the warm-up; norms are of all linear layers together but the head's,
    adapted or not. Real runs collapse when it is too large (``docs/truth.md``). ∞: the run no longer gives numbers.

    Args:
        size: The norm of the linear weights, see ``linear_norm``.
    """

    def __init__(self, size: float) -> None:
        self.size = size
        self.largest = 0.0
        self.before: Factors = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Remember the start."""
        self.before = _factors(kwargs["model"])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Measure, if it is early."""
        if state.global_step <= max(_last_step(state, EARLY), args.get_warmup_steps(state.max_steps)):
            model: TangentModel = kwargs["model"]
            self.largest = max(self.largest, _total(model.changes(self.before)) / self.size)
            self.before = _factors(model)


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


def growth_of(task: Task, tangents: Tangents, layers: Iterable[str]) -> Growth:
    """The growth of the features of the task's network, as its weights are, when these layers change."""
    norms = {layer: _norm([task.model.get_submodule(layer)]) for layer in layers}
    return Growth(norms, normalised=bool(tangents.radii.isfinite().all()))


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


def _last_step(state: TrainerState, share: float) -> int:
    """The step that completes a share of the run."""
    return max(1, round(share * state.max_steps))


def gap_sample(tangents: Tangents) -> Int[Tensor, " b"]:
    """Evaluation examples of all lengths, numbered as in ``tangents``, for ``linearity_gap``."""
    stored = tangents.stored[tangents.num_train :]
    return stored[torch.linspace(0, len(stored) - 1, min(SAMPLE, len(stored))).long()]


def linearity_gap(task: Task, model: TangentModel, examples: Int[Tensor, " b"], before: Float[Tensor, "b c"]) -> float:
    r"""How far the network at the simulated weights θ is from its tangents, relative to how far it moved.

    .. math:: \lVert f_\theta - \tilde f_\theta\rVert / \lVert f_\theta - f_0\rVert

    over evaluation examples and centred outputs: theory.md P4 for the weight-space tangent model, *before* training. 0:
    the forecast is what the network does; towards 1 and above: training leaves the region where its tangents hold; ∞:
    the network or the tangent model no longer gives numbers.

    Args:
        task: The task.
        model: Somewhere in a simulated run.
        examples: Evaluation examples, numbered as in the tangents.
        before: The network's outputs f0 for them at the start of the run.
    """
    rows = [task.eval[int(example) - model.tangents.num_train] for example in examples]
    with simulated_weights(task, model):
        true = all_outputs(task.model, task, rows)
    with evaluating(model), without_growth(model), torch.no_grad():
        predicted = model(examples).logits
    f, f_linear, f0 = (centred(outputs) for outputs in (true, predicted, before))
    if not bool(torch.isfinite(torch.cat([f, f_linear])).all()):
        return math.inf
    return nonlinearity(f, f_linear, f0) if float((f - f0).norm()) > 0 else 0.0
