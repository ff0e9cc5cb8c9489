"""Look at the real network at the weights of a simulated run, to see how far it departs from the simulation."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretune.forecast.movement import last_step
from foretune.forecast.network import simulated_weights, without_growth
from foretune.kernel.bounds import nonlinearity
from foretune.linear import TangentModel, mean_loss
from foretune.tangents import ShortLayers, Tangents, all_outputs, centred, evaluating
from foretune.task import Task

SAMPLE = 32  # number of training examples, and of evaluation examples, that the network is run on
EARLY = 0.25  # share of the steps after which the network is looked at for the first time


@dataclass(frozen=True)
class Departure:
    r"""How far the network at the simulated weights θ is from its tangents and from the simulation.

    f0 are the network's outputs before the run, :math:`f_\theta` its outputs at the simulated weights,
    :math:`\tilde f_\theta` those of its tangents, and g those of the simulation, in which features outgrow their
    tangents. Outputs are centred: adding one number to all outputs of an example changes no prediction. All numbers are
    ∞ if the network or the simulation no longer gives finite numbers.

    Attributes:
        step: The step of the simulated run.
        linearity_gap: :math:`\lVert f_\theta-\tilde f_\theta\rVert/\lVert f_\theta-f_0\rVert` on evaluation examples
            (docs/theory.md P4). 0 if the network does what its tangents say; near 1 or above, training leaves the
            region where the tangents hold.
        outgrowth: :math:`\langle f_\theta-f_0,\, g-f_0\rangle/\lVert g-f_0\rVert^2` on evaluation examples: how many
            times as far as the simulation the network moves in the simulation's direction.
        train_outgrowth: The same on training examples.
        network_loss: The network's loss on the evaluation examples.
        simulated_loss: The simulation's loss on them.
        network_train_loss: The network's loss on the training examples.
        simulated_train_loss: The simulation's loss on them.
    """

    step: int
    linearity_gap: float
    outgrowth: float
    train_outgrowth: float
    network_loss: float
    simulated_loss: float
    network_train_loss: float
    simulated_train_loss: float


class Departures(TrainerCallback):
    """Looks at the network early in a simulated run, and at its end if ``look`` is called then.

    Args:
        task: The task; its model is left unchanged.
        tangents: The tangents at the start of the run.

    Attributes:
        departures: What was measured so far.
    """

    def __init__(self, task: Task, tangents: Tangents) -> None:
        self.task, self.start = task, tangents
        self.train = task.sampled(tangents.num_train).train
        self.departures: list[Departure] = []

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Look at the network if a quarter of the steps is done."""
        if state.global_step == last_step(state, EARLY):
            self.look(kwargs["model"], state.global_step)

    def look(self, model: TangentModel, step: int) -> Departure:
        """Compare the network with the simulation at the weights that the simulation has now.

        Args:
            model: The tangent model, at any point of a simulated run.
            step: The step of the run.

        Returns:
            The measurements, which are also added to ``departures``.
        """
        departure = self._departure(model, step)
        self.departures.append(departure)
        return departure

    def _departure(self, model: TangentModel, step: int) -> Departure:
        start, count = self.start, self.start.num_train
        train, evaluation = (_spread(examples) for examples in (start.stored[:count], start.stored[count:]))
        with simulated_weights(self.task, model), ShortLayers(start.dtype, device=self.task.model.device):
            network = [
                all_outputs(self.task.model, self.task, rows)
                for rows in (
                    self.train.select(train.tolist()),
                    self.task.eval.select((evaluation - count).tolist()),
                )
            ]
        with evaluating(model), torch.no_grad():
            simulated = [model(examples).logits.double().cpu() for examples in (train, evaluation)]
            with without_growth(model):
                linear = model(evaluation).logits.double().cpu()
        before = [start.outputs[examples].double().cpu() for examples in (train, evaluation)]
        if not all(bool(torch.isfinite(outputs).all()) for outputs in [*network, *simulated, linear]):
            return Departure(step, *[math.inf] * 7)
        labels = [start.labels[examples].cpu() for examples in (train, evaluation)]

        def losses(outputs: list[Tensor]) -> list[float]:
            return [float(mean_loss(start.loss, *pair)) for pair in zip(outputs, labels, strict=True)]

        network_losses, simulated_losses = losses(network), losses(simulated)
        f, g, f0 = ([centred(outputs) for outputs in both] for both in (network, simulated, before))
        return Departure(
            step=step,
            linearity_gap=nonlinearity(f[1], centred(linear), f0[1]) if float((f[1] - f0[1]).norm()) > 0 else 0.0,
            outgrowth=_projection(f[1] - f0[1], g[1] - f0[1]),
            train_outgrowth=_projection(f[0] - f0[0], g[0] - f0[0]),
            network_loss=network_losses[1],
            simulated_loss=simulated_losses[1],
            network_train_loss=network_losses[0],
            simulated_train_loss=simulated_losses[0],
        )


def _projection(one: Float[Tensor, "b c"], other: Float[Tensor, "b c"]) -> float:
    """How many times ``other`` is contained in ``one``; 1 if ``other`` is zero."""
    size = float((other * other).sum())
    return float((one * other).sum()) / size if size > 0 else 1.0


def _spread(examples: Int[Tensor, " n"]) -> Int[Tensor, " b"]:
    """Up to ``SAMPLE`` of the examples, evenly spread over their order, which is that of their lengths."""
    return examples[torch.linspace(0, len(examples) - 1, min(SAMPLE, len(examples))).long()]
