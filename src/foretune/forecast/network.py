"""Put the weights of a simulated run into the network: to measure its linearity gap, and to take new tangents."""

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

SAMPLE = 32  # number of evaluation examples on which the linearity gap is measured


@contextmanager
def simulated_weights(task: Task, model: TangentModel) -> Generator[None]:
    """Give the task's network the weights ``W + s B A`` and the head of a simulated run, inside the block."""
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
    """Turn off the growth of features in a tangent model inside the block, so that outputs come from tangents alone."""
    growth, model.growth = model.growth, None
    try:
        yield
    finally:
        model.growth = growth


class Relinearise(TrainerCallback):
    """Takes new tangents at the simulated weights during a simulated run (docs/theory.md section 6).

    There are k refreshes, after the shares ``1 - sqrt(1 - i/(k+1))`` of all steps, i = 1..k. If the learning rate falls
    linearly to zero, they divide the sum of all learning rates into equal parts.

    Args:
        task: The task; its model is left unchanged.
        refreshes: Number k of refreshes.
        scratch: A folder for the new tangents.
    """

    def __init__(self, task: Task, refreshes: int, scratch: Path) -> None:
        self.task, self.scratch = task, scratch
        self.shares = [1 - (1 - i / (refreshes + 1)) ** 0.5 for i in range(1, refreshes + 1)]

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take new tangents if a refresh is due after this step."""
        if any(state.global_step == last_step(state, share) for share in self.shares):
            model: TangentModel = kwargs["model"]
            with simulated_weights(self.task, model):
                tangents = collect(
                    self.task,
                    sorted(model.adapters),
                    heads=model.head.names,
                    directory=self.scratch / f"step-{state.global_step}",
                    dtype=model.tangents.dtype,
                    sample=model.tangents.num_train,
                )
                growth = None if model.growth is None else growth_of(self.task, tangents, model.adapters)
            model.relinearise(tangents.on(self.task.model.device), growth)


def gap_sample(tangents: Tangents) -> Int[Tensor, " b"]:
    """Choose evaluation examples of all lengths for ``linearity_gap``; their numbers are those of ``tangents``."""
    stored = tangents.stored[tangents.num_train :]
    return stored[torch.linspace(0, len(stored) - 1, min(SAMPLE, len(stored))).long()]


def linearity_gap(task: Task, model: TangentModel, examples: Int[Tensor, " b"], before: Float[Tensor, "b c"]) -> float:
    r"""Measure how far the network at the simulated weights θ is from its tangents, relative to how far it moved.

    .. math:: \lVert f_\theta - \tilde f_\theta\rVert / \lVert f_\theta - f_0\rVert

    The norms run over evaluation examples and their centred outputs. This is docs/theory.md P4 for the weight-space
    tangent model, *before* training.

    Args:
        task: The task.
        model: The tangent model, at any point of a simulated run.
        examples: Numbers of evaluation examples, as in the tangents.
        before: Outputs f0 of the network for these examples at the start of the run.

    Returns:
        0 if the network does what the tangents say. Near 1 or above, training leaves the region where the tangents
        hold. ∞ if the network or the tangent model no longer gives finite numbers.
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
