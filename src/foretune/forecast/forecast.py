"""The forecast of a run: every candidate simulated from one cache, ranked best first."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from foretune.forecast.advice import advice
from foretune.forecast.beginning import Beginning, begin
from foretune.forecast.calibration import (
    Correction,
    MeanPoint,
    Simulation,
    corrected,
    corrections,
    evidence,
    gains_little,
    may_collapse,
    unstable,
)
from foretune.forecast.compare import higher_is_better, worth
from foretune.forecast.figures import Figures, Kernels
from foretune.forecast.frozen import frozen_correlation
from foretune.forecast.movement import (
    Movement,
    Reach,
    change_before_learning,
    layer_changes,
    linear_norm,
    weight_change,
)
from foretune.forecast.network import gap_sample, linearity_gap
from foretune.forecast.sample import Sample, without
from foretune.forecast.simulate import Start, fitted_losses, simulate_all
from foretune.forecast.starts import Starts
from foretune.linear import TangentModel
from foretune.tangents import Tangents
from foretune.task import Candidate, Task
from foretune.train.loop import Point, Run

Bar = Callable[[str], AbstractContextManager[Any]]
SEEDS = 1  # simulated seeds of a candidate: error bars hold what other seeds change


@dataclass
class Forecast:
    """What one candidate is expected to do.

    Attributes:
        candidate: The candidate.
        metric_name: What the metric is.
        guess: The metric of guessing.
        guess_loss: The loss of guessing.
        outputs: How many the network has.
        frozen: What its features tell of the labels before training.
        runs: One simulated run a seed, the user's own seed first.
        seeds: Their seeds.
        refreshes: How often tangents were taken again in each.
        reach: How far the first of them goes.
        fitted_loss: Loss of the training examples at its end.
        sample: How many of the training examples were simulated, for how many.
        kernel: The figures of its NTK, as in ``forecast.json``.
        seconds: Time all of this took.
        trainable_parameters: Parameters of adapters and head.
        beginning: That of the real run, where it was begun.
        warnings: What to know before believing it.
    """

    candidate: Candidate
    metric_name: str
    guess: float
    guess_loss: float
    outputs: int
    frozen: float
    runs: list[Run]
    seeds: list[int]
    refreshes: int
    reach: Reach
    fitted_loss: float
    sample: Sample
    kernel: Figures
    seconds: float
    trainable_parameters: int
    beginning: Beginning | None = None
    warnings: list[str] = field(default_factory=list)

    def add(self, run: Run, seed: int) -> None:
        """One more simulated run, from another seed."""
        self.runs.append(run)
        self.seeds.append(seed)
        self.seconds += run.seconds

    def warn(self, task: Task) -> None:
        """Say what is to be known of it, and no longer what was said before."""
        seen = self.reach, self.fitted_loss, self.frozen, self.beginning
        self.warnings = advice(self.curve, self.candidate, task, *seen, gains_little(self.known.gain))

    @property
    def simulated(self) -> list[MeanPoint]:
        """The simulated runs: mean over the seeds at each evaluation, with standard deviations over several."""
        return [_mean_point(points) for points in zip(*(run.curve for run in self.runs), strict=True)]

    @property
    def excess(self) -> float:
        """How much further apart the final losses are than all training examples would leave them."""
        return self.sample.excess(self.runs[0].final["eval_loss"], self.fitted_loss)

    @property
    def evidence(self) -> dict[str, float]:
        """What the first simulated run tells about the real one beyond its result."""
        return evidence(self.known)

    @property
    def known(self) -> Simulation:
        """What is known of the first simulated run."""
        final = self.runs[0].final
        losses = without(self.excess, {"fitted_loss": self.fitted_loss, "eval_loss": final["eval_loss"]})
        return Simulation(
            largest_step=self.reach.largest_step,
            travel=self.reach.travel,
            change_before_learning=self.reach.change_before_learning,
            linearity_gap=self.reach.linearity_gap,
            layer_changes=self.reach.layer_changes,
            **losses,
            eval_metric=final["eval_metric"],
            guess=self.guess,
            guess_loss=self.guess_loss,
            metric_name=self.metric_name,
            outputs=self.outputs,
            frozen=self.frozen,
            followed=self.followed,
        )

    @property
    def curve(self) -> list[MeanPoint]:
        """The expected curve: the simulated one, corrected by what was learnt from real runs.

        The correction holds at the end and grows with the steps until there, as does what a sample of the training
        examples fits too closely. With refreshes only the correction's spread is used: it was learnt from runs without.
        """
        known = {name: self.sample.widened(each) for name, each in corrections(self.evidence).items()}
        if self.refreshes:
            known = {name: Correction(0.0, each.spread) for name, each in known.items()}
        points, excess = [], self.excess
        for point in self.simulated:
            share = point["step"] / self.steps
            expected = corrected(without(share * excess, point), known, share, self.metric_name)
            points.append(MeanPoint(**expected))  # type: ignore[typeddict-item]
        return points

    @property
    def unstable(self) -> bool:
        """Whether the run is expected to collapse."""
        return self.may_collapse and unstable(self.followed)

    @property
    def may_collapse(self) -> bool:
        """Whether such runs were seen to collapse."""
        reach = self.reach
        return may_collapse(reach.largest_step, reach.travel, reach.change_before_learning)

    @property
    def followed(self) -> float | None:
        """How much of what the simulation learnt in its beginning the real run learnt too; None: that is not known."""
        return None if self.beginning is None else self.beginning.followed

    @property
    def to_begin(self) -> bool:
        """Whether it takes a beginning of the real run to tell whether it collapses."""
        return self.may_collapse and not self.known.is_foregone

    @property
    def steps(self) -> int:
        """Steps of the run."""
        return int(self.runs[0].final["step"])

    @property
    def eval_metric(self) -> float:
        """Expected metric at the end."""
        return self.curve[-1]["eval_metric"]

    @property
    def eval_loss(self) -> float:
        """Expected evaluation loss at the end."""
        return self.curve[-1]["eval_loss"]

    def to_json(self) -> dict[str, Any]:
        """The candidate's entry in ``forecast.json``."""
        predicted: dict[str, Any] = _values(self.curve[-1]) | {"metric_name": self.metric_name}
        return {
            "name": self.candidate.name,
            **self.candidate.to_json(),
            "predicted": predicted | {"curve": self.curve, "seeds": self.seeds},
            "simulated": _values(self.simulated[-1]) | {"fitted_loss": self.fitted_loss},
            **asdict(self.reach),
            "may_collapse": self.may_collapse,
            "unstable": self.unstable,
            "beginning": self.beginning and asdict(self.beginning) | {"followed": self.followed},
            "kernel": self.kernel,
            "cost": {"seconds": self.seconds, "trainable_parameters": self.trainable_parameters},
            "warnings": self.warnings,
        }


def forecast(
    tangents: Tangents | Starts,
    task: Task,
    candidates: Sequence[Candidate],
    *,
    seeds: int = SEEDS,
    refreshes: int = 0,
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
        progress: Called with simulations done and in all.
    """
    starts = tangents if isinstance(tangents, Starts) else Starts(task, tangents)
    kernels, size = Kernels(), linear_norm(task, starts.first.head.names)
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
) -> list[Forecast]:
    """The same forecasts, ranked again, after the real runs of those that may collapse, or not, have been begun.

    Args:
        forecasts: Of the task.
        task: The task.
        share: Of a run's steps; 0 begins none.
        directory: Keep the beginnings there, and use those that are.
        bar: Makes a progress bar for a label; by default there is none.
    """
    for each in forecasts:
        if share > 0 and each.to_begin:
            with bar(f"beginning {each.candidate.name} for real") as progress:
                losses = each.runs[0].step_losses
                each.beginning = begin(
                    task, each.candidate, losses, share=share, directory=directory, progress=progress
                )
            each.seconds += each.beginning.seconds
            each.warn(task)
    return ranked(forecasts, task)


def ranked(forecasts: Iterable[Forecast], task: Task) -> list[Forecast]:
    """Best first; those that may collapse by the worse end of their error bar, and last unless they were begun well."""
    higher = higher_is_better(task.metric_name)

    def rank(each: Forecast) -> tuple[float, float]:
        std = each.curve[-1]["eval_metric_std"]
        value = worth(each.eval_metric, std, each.may_collapse, each.unstable, higher)
        return -value if higher else value, each.eval_loss

    return sorted(forecasts, key=rank)


def _values(point: MeanPoint) -> dict[str, Any]:
    return {name: value for name, value in point.items() if name not in {"step", "epoch"}}


def _mean_point(points: Sequence[Point]) -> MeanPoint:
    train = [point["train_loss"] for point in points if point["train_loss"] is not None]
    losses, metrics = ([float(point[name]) for point in points] for name in ("eval_loss", "eval_metric"))
    several = len(points) > 1
    return MeanPoint(
        step=points[0]["step"],
        epoch=points[0]["epoch"],
        train_loss=fmean(train) if train else None,
        eval_loss=fmean(losses),
        eval_metric=fmean(metrics),
        eval_loss_std=stdev(losses) if several else None,
        eval_metric_std=stdev(metrics) if several else None,
    )
