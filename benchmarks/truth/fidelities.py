"""Cheaper predictions than the simulation, and a dearer one: the kernel, its linear model, refreshed tangents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from truth.predictors import Score, Scores, scored, timed
from truth.selection import adapted

from foretune.forecast.simulate import simulate
from foretune.forecast.starts import Starts
from foretune.kernel import ntk
from foretune.linear import Modes, best_strength, ridge
from foretune.tangents import Tangents, collect
from foretune.task import Candidate, Task


def kernel_ridge(task: Task, folder: Path) -> Scores:
    """Kernel ridge regression with the NTK, its λ by leave-one-out: no optimiser, no steps, no learning rate."""
    tangents, starts = _start(task, folder)

    def score(candidate: Candidate) -> Score:
        modes = _modes(tangents, starts, candidate)
        outputs = modes.kernel.outputs(ridge(modes, best_strength(modes)).fx_eval)
        metric = task.compute_metrics(outputs, tangents.labels[tangents.num_train :])["eval_metric"]
        return Score(metric, metric)

    return timed(task, score, tangents.seconds)


def kernel_leave_one_out(task: Task, folder: Path) -> Scores:
    """The least leave-one-out error of that regression, from the kernel and the training labels alone."""
    tangents, starts = _start(task, folder)

    def rank(candidate: Candidate) -> float:
        modes = _modes(tangents, starts, candidate)
        return -float(modes.leave_one_out(best_strength(modes)).square().sum(1).mean())

    return scored(task, rank, tangents.seconds)


def linear_model(task: Task, folder: Path) -> Scores:
    """The run's own optimiser on the model that is linear in the parameters: the factors A are not trained."""
    return _simulated(task, folder, growth=False, watch=[FrozenFactors()])


def tangents_alone(task: Task, folder: Path) -> Scores:
    """The simulation without the growth of outputs beyond their tangents."""
    return _simulated(task, folder, growth=False)


def refreshed(task: Task, folder: Path) -> Scores:
    """The simulation with tangents that are collected anew twice on the way."""
    return _simulated(task, folder, refreshes=2)


class FrozenFactors(TrainerCallback):
    """Trains only the factors B and the head."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze the factors A."""
        for name, parameter in kwargs["model"].named_parameters():
            if "lora_A" in name:
                parameter.requires_grad_(False)


def _simulated(
    task: Task, folder: Path, *, refreshes: int = 0, growth: bool = True, watch: Sequence[TrainerCallback] = ()
) -> Scores:
    tangents, starts = _start(task, folder)

    def score(candidate: Candidate) -> Score:
        adapters, head = starts.draw(candidate, candidate.seed)
        run, _ = simulate(
            tangents, task, candidate, adapters, head, candidate.seed, refreshes=refreshes, growth=growth, watch=watch
        )
        return Score(run.final["eval_metric"], run.final["eval_metric"], run.final["eval_loss"])

    return timed(task, score, tangents.seconds)


def _modes(tangents: Tangents, starts: Starts, candidate: Candidate) -> Modes:
    return Modes.of(ntk(tangents, starts.draw(candidate, candidate.seed)[0]))


def _start(task: Task, folder: Path) -> tuple[Tangents, Starts]:
    layers = {module.name for candidate in task.candidates for module in adapted(task, candidate)}
    tangents = collect(task, sorted(layers), directory=folder / "tangents")
    return tangents, Starts(task, tangents)
