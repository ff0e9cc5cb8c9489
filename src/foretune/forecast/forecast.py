"""Forecast a run: simulate every candidate from one set of tangents, and rank the candidates."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import product
from pathlib import Path
from typing import Any

from foretune.forecast.beginning import begin
from foretune.forecast.compare import higher_is_better, worth
from foretune.forecast.expectation import Forecast
from foretune.forecast.figures import Kernels
from foretune.forecast.frozen import frozen_correlation
from foretune.forecast.movement import (
    Movement,
    Reach,
    change_before_learning,
    depth,
    layer_changes,
    linear_norm,
    weight_change,
)
from foretune.forecast.network import gap_sample, linearity_gap
from foretune.forecast.sample import Sample
from foretune.forecast.simulate import Start, fitted_losses, simulate_all
from foretune.forecast.starts import Starts
from foretune.linear import TangentModel
from foretune.tangents import Tangents
from foretune.task import Candidate, Task
from foretune.train.curve import Run

Bar = Callable[[str], AbstractContextManager[Any]]
SEEDS = 1  # simulated seeds per candidate; one is enough, as the error bars include the difference between seeds


def forecast(
    tangents: Tangents | Starts,
    task: Task,
    candidates: Sequence[Candidate],
    *,
    seeds: int = SEEDS,
    refreshes: int = 0,
    kernels: Kernels | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[Forecast]:
    """Simulate every candidate from several seeds, and rank the candidates.

    The first seed is the user's own: its head, its adapters and its batches are those of the real run.

    Args:
        tangents: Tangents of the task, or of a sample of its training examples, for every layer that a candidate
            adapts. Pass ``Starts`` if several seeds draw heads of their own; otherwise that raises a ``ValueError``.
        task: The task.
        candidates: The candidates to simulate.
        seeds: Number of seeds per candidate, counted up from the candidate's own seed.
        refreshes: How often new tangents are taken in a run; every time costs a pass over the network.
        kernels: Figures of earlier forecasts of the same task, which are used again.
        progress: Called with the number of simulations done and of all simulations.

    Returns:
        The forecasts, ranked as ``ranked`` does.
    """
    starts = tangents if isinstance(tangents, Starts) else Starts(task, tangents)
    kernels, size = kernels or Kernels(), linear_norm(task, starts.first.head.names)
    forecasts: dict[int, Forecast] = {}
    done = 0

    def tell(now: int) -> None:
        if progress:
            progress(done + now, len(candidates) * seeds)

    for extra, seed in product(range(seeds), sorted({candidate.seed for candidate in candidates})):
        own_tangents = starts.tangents(seed + extra).on(task.model.device)
        numbers = [number for number, candidate in enumerate(candidates) if candidate.seed == seed]
        jobs = [
            Start(candidate, *starts.draw(candidate, seed + extra), watch=() if extra else (Movement(size),))
            for candidate in (candidates[number] for number in numbers)
        ]
        results = simulate_all(own_tangents, task, jobs, seed + extra, refreshes=refreshes, progress=tell)
        if extra:
            for number, (run, _) in zip(numbers, results, strict=True):
                forecasts[number].add(run, seed + extra)
        else:  # the user's own seed, whose runs are measured
            started = time.perf_counter()
            losses, frozen = fitted_losses([model for _, model in results]), frozen_correlation(own_tangents)
            seconds = (time.perf_counter() - started) / len(results)
            for number, job, (run, model), fitted in zip(numbers, jobs, results, losses, strict=True):
                forecasts[number] = _measured(task, own_tangents, job, run, model, kernels, refreshes, fitted, frozen)
                forecasts[number].seconds += seconds
        done += len(jobs)
    for result in forecasts.values():
        result.warn(task)
    return ranked(list(forecasts.values()), task)


def _measured(
    task: Task,
    tangents: Tangents,
    job: Start,
    run: Run,
    model: TangentModel,
    kernels: Kernels,
    refreshes: int,
    fitted_loss: float,
    frozen: float,
) -> Forecast:
    """The forecast of one simulated run, with everything that is measured on it."""
    started = time.perf_counter()
    candidate, guess_loss, examples = job.candidate, task.guess_loss, gap_sample(tangents)
    (movement,) = job.watch
    assert isinstance(movement, Movement)
    result = Forecast(
        candidate=candidate,
        metric_name=task.metric_name,
        guess=task.majority_metric or 0.0,
        guess_loss=guess_loss,
        outputs=task.num_outputs,
        frozen=frozen,
        runs=[run],
        seeds=[candidate.seed],
        refreshes=refreshes,
        reach=Reach(
            largest_step=movement.largest_step,
            travel=movement.travel,
            change_before_learning=change_before_learning(movement.changes, run.step_losses, guess_loss),
            weight_change=weight_change(task, model),
            layer_changes=layer_changes(task, model),
            depth=depth(task, model),
            linearity_gap=linearity_gap(task, model, examples, tangents.outputs[examples]),
        ),
        fitted_loss=fitted_loss,
        sample=Sample(tangents.num_train, len(task.train)),
        eval_examples=len(task.eval),
        kernel=kernels.figures(tangents, candidate, job.adapters, int(run.final["step"])),
        seconds=run.seconds,
        trainable_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    result.seconds += time.perf_counter() - started
    return result


def begun(
    forecasts: Sequence[Forecast],
    task: Task,
    share: float,
    *,
    directory: Path | None = None,
    bar: Bar = lambda _: nullcontext(),
    notify: Callable[[str], None] | None = None,
) -> list[Forecast]:
    """Begin the real runs that may collapse, which means to train their first steps, and rank all forecasts again.

    Args:
        forecasts: Forecasts of the task. Those whose real run is begun are changed.
        task: The task.
        share: Share of a run's steps to train; 0 trains none.
        directory: The run directory, where beginnings are kept and used again.
        bar: Makes a progress bar for a label; by default there is none.
        notify: Called with a sentence about a kept beginning that cannot be used.

    Returns:
        The same forecasts, ranked again.
    """
    for result in forecasts:
        if share > 0 and result.to_begin:
            with bar(f"training the beginning of {result.candidate.name}") as progress:
                losses = result.runs[0].step_losses
                result.beginning = begin(
                    task, result.candidate, losses, share=share, directory=directory, progress=progress, notify=notify
                )
            result.seconds += result.beginning.seconds
            result.warn(task)
    return ranked(forecasts, task)


def ranked(forecasts: Iterable[Forecast], task: Task) -> list[Forecast]:
    """Sort forecasts, best first.

    A run that may collapse comes last. If its real beginning learnt, it is ranked by the worse end of its error bar, or
    by its forecast if it learnt at least half of what the simulation learnt.

    Args:
        forecasts: Forecasts of the task.
        task: The task, whose metric decides.

    Returns:
        The forecasts; equal metrics are ordered by the evaluation loss.
    """
    higher = higher_is_better(task.metric_name)

    def rank(result: Forecast) -> tuple[float, float]:
        final = result.final
        value = worth(final["eval_metric"], final["eval_metric_std"], result.at_risk, result.unstable, higher)
        return -value if higher else value, final["eval_loss"]

    return sorted(forecasts, key=rank)
