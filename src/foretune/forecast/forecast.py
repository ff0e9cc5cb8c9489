"""The forecast of a run: every candidate simulated from one cache, ranked best first."""

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
SEEDS = 1  # simulated seeds of a candidate: error bars hold what other seeds change


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
    """Simulate each candidate from several seeds and rank the candidates, best first, those that may collapse last.

    The first seed is the user's own: its head, its adapters and its batches are those of the real run.

    Args:
        tangents: Of the task, for every layer that a candidate adapts; those of a sample of its training examples do.
            ``Starts`` where several seeds have heads of their own; else that is a ``ValueError``.
        task: The task.
        candidates: What to simulate.
        seeds: Seeds for each candidate, counted up from its own.
        refreshes: How often tangents are taken again in a run, each time by a pass over the network.
        kernels: Figures of earlier forecasts of the same task, which are not made again.
        progress: Called with simulations done and in all.
    """
    starts = tangents if isinstance(tangents, Starts) else Starts(task, tangents)
    kernels, size = kernels or Kernels(), linear_norm(task, starts.first.head.names)
    forecasts: dict[int, Forecast] = {}
    done = 0

    def tell(now: int) -> None:
        if progress:
            progress(done + now, len(candidates) * seeds)

    for extra, seed in product(range(seeds), sorted({candidate.seed for candidate in candidates})):
        taken = starts.tangents(seed + extra).on(task.model.device)
        numbers = [n for n, each in enumerate(candidates) if each.seed == seed]
        jobs = [
            Start(each, *starts.draw(each, seed + extra), watch=() if extra else (Movement(size),))
            for each in (candidates[number] for number in numbers)
        ]
        results = simulate_all(taken, task, jobs, seed + extra, refreshes=refreshes, progress=tell)
        if extra:
            for number, (run, _) in zip(numbers, results, strict=True):
                forecasts[number].add(run, seed + extra)
        else:  # the user's own seed, whose runs are looked at
            started = time.perf_counter()
            losses, frozen = fitted_losses([model for _, model in results]), frozen_correlation(taken)
            seconds = (time.perf_counter() - started) / len(results)
            for number, job, (run, model), fitted in zip(numbers, jobs, results, losses, strict=True):
                forecasts[number] = _looked_at(task, taken, job, run, model, kernels, refreshes, fitted, frozen)
                forecasts[number].seconds += seconds
        done += len(jobs)
    for each in forecasts.values():
        each.warn(task)
    return ranked(list(forecasts.values()), task)


def _looked_at(
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
    """The forecast of one simulated run."""
    started = time.perf_counter()
    candidate, guess_loss, examples = job.candidate, task.guess_loss, gap_sample(tangents)
    (movement,) = job.watch
    assert isinstance(movement, Movement)
    found = Forecast(
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
        kernel=kernels.figures(tangents, candidate, job.adapters, int(run.final["step"])),
        seconds=run.seconds,
        trainable_parameters=sum(parameter.numel() for parameter in model.parameters()),
    )
    found.seconds += time.perf_counter() - started
    return found


def begun(
    forecasts: Sequence[Forecast],
    task: Task,
    share: float,
    *,
    directory: Path | None = None,
    bar: Bar = lambda _: nullcontext(),
    notify: Callable[[str], None] | None = None,
) -> list[Forecast]:
    """The same forecasts, ranked again, after the real runs of those that may collapse, or not, have been begun.

    Args:
        forecasts: Of the task.
        task: The task.
        share: Of a run's steps; 0 begins none.
        directory: Keep the beginnings there, and use those that are.
        bar: Makes a progress bar for a label; by default there is none.
        notify: Called with a sentence about a kept beginning that cannot be used.
    """
    for each in forecasts:
        if share > 0 and each.to_begin:
            with bar(f"beginning {each.candidate.name} for real") as progress:
                losses = each.runs[0].step_losses
                each.beginning = begin(
                    task, each.candidate, losses, share=share, directory=directory, progress=progress, notify=notify
                )
            each.seconds += each.beginning.seconds
            each.warn(task)
    return ranked(forecasts, task)


def ranked(forecasts: Iterable[Forecast], task: Task) -> list[Forecast]:
    """Best first; those that may collapse by the worse end of their error bar, and last unless they were begun well."""
    higher = higher_is_better(task.metric_name)

    def rank(each: Forecast) -> tuple[float, float]:
        final = each.final
        value = worth(final["eval_metric"], final["eval_metric_std"], each.may_collapse, each.unstable, higher)
        return -value if higher else value, final["eval_loss"]

    return sorted(forecasts, key=rank)
