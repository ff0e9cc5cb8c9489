"""The forecast of a run: every candidate simulated from one cache, ranked best first."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import fmean, stdev
from typing import Any

import torch

from foretune.forecast.advice import advice
from foretune.forecast.calibration import Correction, MeanPoint, Simulation, corrected, corrections, evidence, unstable
from foretune.forecast.compare import higher_is_better
from foretune.forecast.network import (
    LargestStep,
    Reach,
    gap_sample,
    layer_changes,
    linear_norm,
    linearity_gap,
    weight_change,
)
from foretune.forecast.sample import Sample, without
from foretune.forecast.simulate import fitted_loss, simulate
from foretune.forecast.starts import Starts
from foretune.kernel import RiskBounds, Spectrum, Summary, ntk, risk_summary, summary
from foretune.linear import Modes, best_strength
from foretune.tangents import Adapter, Tangents
from foretune.task import Candidate, Task
from foretune.train.loop import Point, Run

ENTRIES = 1024  # rows of a kernel whose figures are given: its eigenvalues take the cube of it
SEEDS = 1  # simulated seeds of a candidate: error bars hold what other seeds change


class Figures(Summary):
    """The figures of a candidate's NTK; risks after as many steps as its run takes."""

    risk_bounds: RiskBounds


@dataclass
class Forecast:
    """What one candidate is expected to do.

    Attributes:
        candidate: The candidate.
        metric_name: What the metric is.
        guess: The metric of guessing.
        runs: One simulated run a seed, the user's own seed first.
        seeds: Their seeds.
        refreshes: How often tangents were taken again in each.
        reach: How far the first of them goes.
        fitted_loss: Loss of the training examples at its end.
        sample: How many of the training examples were simulated, for how many.
        kernel: The figures of its NTK, as in ``forecast.json``.
        seconds: Time all of this took.
        trainable_parameters: Parameters of adapters and head.
        warnings: What to know before believing it.
    """

    candidate: Candidate
    metric_name: str
    guess: float
    runs: list[Run]
    seeds: list[int]
    refreshes: int
    reach: Reach
    fitted_loss: float
    sample: Sample
    kernel: Figures
    seconds: float
    trainable_parameters: int
    warnings: list[str] = field(default_factory=list)

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
        final = self.runs[0].final
        losses = without(self.excess, {"fitted_loss": self.fitted_loss, "eval_loss": final["eval_loss"]})
        return evidence(
            Simulation(
                largest_step=self.reach.largest_step,
                linearity_gap=self.reach.linearity_gap,
                layer_changes=self.reach.layer_changes,
                **losses,
                eval_metric=final["eval_metric"],
                guess=self.guess,
                metric_name=self.metric_name,
            )
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
        """Whether the run may collapse."""
        return unstable(self.reach.largest_step)

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
            "unstable": self.unstable,
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
    kernels, size = _Kernels(), linear_norm(task, starts.first.head.names)
    guess = task.majority_metric or 0.0
    forecasts = []
    for number, candidate in enumerate(candidates):
        started = time.perf_counter()
        own = [candidate.seed + extra for extra in range(seeds)]
        runs: list[Run] = []
        for seed in own:
            taken = starts.tangents(seed)
            adapters, head = starts.draw(candidate, seed)
            examples = gap_sample(taken)
            with torch.no_grad():
                before = head.eval()(taken.features[examples])
            first = not runs  # the user's own seed, whose run is looked at
            largest = LargestStep(size)
            watch = [largest] if first else []
            run, model = simulate(taken, task, candidate, adapters, head, seed, refreshes=refreshes, watch=watch)
            if first:
                gap = linearity_gap(task, model, examples, before)
                reach = Reach(largest.largest, weight_change(task, model), layer_changes(task, model), gap)
                fitted = fitted_loss(model)
                kernel = kernels.figures(taken, candidate, adapters, int(run.final["step"]))
            runs.append(run)
            if progress:
                progress(number * seeds + len(runs), len(candidates) * seeds)
        found = Forecast(
            candidate=candidate,
            metric_name=task.metric_name,
            guess=guess,
            runs=runs,
            seeds=own,
            refreshes=refreshes,
            reach=reach,
            fitted_loss=fitted,
            sample=Sample(taken.num_train, len(task.train)),
            seconds=time.perf_counter() - started,
            kernel=kernel,
            trainable_parameters=sum(parameter.numel() for parameter in model.parameters()),
        )
        found.warnings = advice(found.curve, candidate, task, reach)
        forecasts.append(found)
    sign = -1 if higher_is_better(task.metric_name) else 1
    return sorted(forecasts, key=lambda each: (each.unstable, sign * each.eval_metric, each.eval_loss))


class _Kernels:
    """The figures of NTKs, each factored once: candidates that differ only in training share one."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Summary, Spectrum, torch.Tensor]] = {}
        self.examples: dict[int, Tangents] = {}  # by the seed of the tangents that they are of

    def figures(self, tangents: Tangents, candidate: Candidate, adapters: Sequence[Adapter], steps: int) -> Figures:
        """The figures of the candidate's NTK with the adapters that it starts from, with λ chosen by leave-one-out."""
        key = json.dumps([candidate.peft_dict(), candidate.seed], sort_keys=True)
        if key not in self.seen:
            if candidate.seed not in self.examples:
                self.examples[candidate.seed] = _spread(tangents)
            modes = Modes.of(ntk(self.examples[candidate.seed], adapters))
            found = summary(modes.kernel, best_strength(modes))
            self.seen[key] = found, replace(modes.spectrum, eigenvectors=None), modes.coefficients
        found, spectrum, coefficients = self.seen[key]
        risks = risk_summary(
            spectrum, coefficients, num_train=found["examples"], strength=found["strength"], steps=steps
        )
        return Figures(**found, risk_bounds=risks)


def _spread(tangents: Tangents) -> Tangents:
    """As many training examples, of all lengths, as make a kernel of ``ENTRIES`` rows at most."""
    outputs = max(1, tangents.outputs.shape[1] - 1)
    count = min(tangents.num_train, max(2, ENTRIES // outputs))
    chosen = torch.linspace(0, tangents.num_train - 1, count).long()
    return tangents.sample(tangents.stored[: tangents.num_train][chosen])


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
