"""Back to the network: the simulated weights put into it, to see how far the tangents hold and to take new ones."""

import math
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.pytorch_utils import Conv1D

from foretune.forecast.movement import growth_of, last_step
from foretune.kernel.bounds import nonlinearity
from foretune.linear import TangentModel, replaced
from foretune.tangents import ShortLayers, Tangents, all_outputs, centred, collect, evaluating
from foretune.task import Task

SAMPLE = 32  # evaluation examples on which the linearity gap is measured


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
        if any(state.global_step == last_step(state, share) for share in self.shares):
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
            model.relinearise(found.on(self.task.model.device), growth)


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
    rows = task.eval.select((examples - model.tangents.num_train).tolist())
    with simulated_weights(task, model), ShortLayers(model.tangents.dtype, device=task.model.device):
        true = all_outputs(task.model, task, rows)
    with evaluating(model), without_growth(model), torch.no_grad():
        predicted = model(examples).logits
    f, f_linear, f0 = (centred(outputs) for outputs in (true, predicted, before))
    if not bool(torch.isfinite(torch.cat([f, f_linear])).all()):
        return math.inf
    return nonlinearity(f, f_linear, f0) if float((f - f0).norm()) > 0 else 0.0
