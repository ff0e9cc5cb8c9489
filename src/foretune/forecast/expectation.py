"""The forecast of one candidate: its simulated runs, their correction, and the warnings about it."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from statistics import fmean, stdev
from typing import Any

from foretune.forecast.advice import Advice, advice
from foretune.forecast.beginning import Beginning
from foretune.forecast.calibration import (
    Correction,
    MeanPoint,
    Simulation,
    at_risk,
    corrected,
    corrections,
    evidence,
    gains_little,
    may_collapse,
    scale,
    unstable,
)
from foretune.forecast.evaluation_noise import evaluation_spread
from foretune.forecast.figures import Figures
from foretune.forecast.movement import Reach
from foretune.forecast.sample import Sample, without
from foretune.task import Candidate, Task
from foretune.train.choice import kept_point
from foretune.train.curve import Point, Run


@dataclass(repr=False)
class Forecast:
    """The forecast of one candidate.

    Attributes:
        candidate: The candidate.
        metric_name: Name of the metric.
        guess: The metric of guessing.
        guess_loss: The loss of guessing.
        outputs: Number of outputs of the network.
        frozen: Correlation of the labels with their prediction from the features before training.
        runs: The simulated runs, one per seed, the user's own seed first.
        seeds: The seeds of these runs.
        refreshes: How often new tangents were taken in every run.
        reach: How far the first run moves the weights.
        fitted_loss: Mean loss of the training examples at the end of the first run.
        sample: How many training examples were simulated, and how many there are.
        eval_examples: Number of evaluation examples.
        kernel: The figures of the candidate's NTK, as in ``forecast.json``.
        seconds: Time that all of this took.
        trainable_parameters: Number of parameters of adapters and head.
        beginning: The first steps of the real run, if they were trained.
        warnings: Warnings about this forecast, the worst first.
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
    eval_examples: int
    kernel: Figures
    seconds: float
    trainable_parameters: int
    beginning: Beginning | None = None
    warnings: list[Advice] = field(default_factory=list)

    def __repr__(self) -> str:
        final = self.final
        return (
            f"Forecast({self.candidate.name!r}, {self.metric_name}={final['eval_metric']:.4g}, "
            f"eval_loss={final['eval_loss']:.4g}, warnings={len(self.warnings)})"
        )

    def add(self, run: Run, seed: int) -> None:
        """Add a simulated run from another seed."""
        self.runs.append(run)
        self.seeds.append(seed)
        self.seconds += run.seconds

    def warn(self, task: Task) -> None:
        """Replace the warnings by those that hold now."""
        measured = self.reach, self.fitted_loss, self.frozen, self.beginning
        self.warnings = advice(self.curve, self.candidate, task, *measured, gains_little(self.known.gain))

    @property
    def simulated(self) -> list[MeanPoint]:
        """The simulated curve: means over the seeds at every evaluation, and standard deviations over several seeds."""
        return [_mean_point(points) for points in zip(*(run.curve for run in self.runs), strict=True)]

    @property
    def excess(self) -> float:
        """By how much the final losses are further apart than they would be with all training examples."""
        return self.sample.excess(self.runs[0].final["eval_loss"], self.fitted_loss)

    @property
    def evidence(self) -> dict[str, float]:
        """The features of the first simulated run from which its correction is predicted."""
        return evidence(self.known)

    @property
    def known(self) -> Simulation:
        """The measurements of the first simulated run on which its correction depends."""
        final = self.runs[0].final
        losses = without(self.excess, {"fitted_loss": self.fitted_loss, "eval_loss": final["eval_loss"]})
        return Simulation(
            largest_step=self.reach.largest_step,
            travel=self.reach.travel,
            change_before_learning=self.reach.change_before_learning,
            linearity_gap=self.reach.linearity_gap,
            layer_changes=self.reach.layer_changes,
            depth=self.reach.depth,
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
        """The forecast curve: the simulated curve, corrected by what was learnt from real runs.

        The correction grows with the steps and is complete at the end, and so is the correction for a sample of the
        training examples. With refreshes only the spread of the correction is used, because its shift was learnt from
        runs without refreshes.
        """
        by_quantity = {name: self.sample.widened(one) for name, one in corrections(self.evidence).items()}
        if self.refreshes:
            by_quantity = {name: Correction(0.0, one.spread) for name, one in by_quantity.items()}
        points, excess, simulated = [], self.excess, self.simulated
        by_quantity["eval_metric"] = self._measured_on_few(by_quantity["eval_metric"], simulated[-1]["eval_metric"])
        for point in simulated:
            share = point["step"] / self.steps
            expected = corrected(without(share * excess, point), by_quantity, share, self.metric_name)
            points.append(MeanPoint(**expected))  # type: ignore[typeddict-item]
        return points

    def _measured_on_few(self, correction: Correction, simulated: float) -> Correction:
        """The correction of a simulated metric with a larger spread if there are few evaluation examples."""
        on = scale("eval_metric", self.metric_name)
        if not math.isfinite(simulated):
            return correction
        expected = on.back(on.to(simulated) + correction.shift)
        added = evaluation_spread(self.metric_name, expected, self.eval_examples)
        return correction._replace(spread=math.hypot(correction.spread, added))

    @property
    def final(self) -> MeanPoint:
        """The point of the curve whose model is kept: the last one, or the best one if the user asks for that.

        Its error bars are at least as wide as those of the last point, because it is uncertain which checkpoint of the
        real run will be the best.
        """
        curve = self.curve
        point, last = curve[kept_point(curve, self.candidate.training)], curve[-1]
        bars = {
            name: max((value for value in (point[name], last[name]) if value is not None), default=None)
            for name in ("eval_loss_std", "eval_metric_std")
        }
        return MeanPoint(**{**point, **bars})  # type: ignore[typeddict-item]

    @property
    def unstable(self) -> bool:
        """Whether the run is expected to collapse."""
        return self.may_collapse and unstable(self.followed)

    @property
    def at_risk(self) -> bool:
        """Whether the run may still collapse, after what its real beginning learnt."""
        return at_risk(self.may_collapse, self.followed)

    @property
    def may_collapse(self) -> bool:
        """Whether similar real runs were seen to collapse."""
        reach = self.reach
        return may_collapse(reach.largest_step, reach.travel, reach.change_before_learning)

    @property
    def followed(self) -> float | None:
        """Share of what the simulation learnt in its beginning that the real run learnt too; None if not begun."""
        return None if self.beginning is None else self.beginning.followed

    @property
    def to_begin(self) -> bool:
        """Whether the real run should be begun, to see whether it collapses."""
        return self.may_collapse and not gains_little(self.known.gain)

    @property
    def steps(self) -> int:
        """Number of optimiser steps of the run."""
        return int(self.runs[0].final["step"])

    @property
    def eval_metric(self) -> float:
        """Forecast metric of the model that is kept."""
        return self.final["eval_metric"]

    @property
    def eval_loss(self) -> float:
        """Forecast evaluation loss of the model that is kept."""
        return self.final["eval_loss"]

    def to_json(self) -> dict[str, Any]:
        """Return the candidate's entry in ``forecast.json``."""
        final = self.final
        predicted: dict[str, Any] = dict(final) | {"metric_name": self.metric_name}
        curve = self.simulated
        (simulated,) = (point for point in curve if point["step"] == final["step"])
        return {
            "name": self.candidate.name,
            **self.candidate.to_json(),
            "predicted": predicted | {"curve": self.curve, "seeds": self.seeds},
            "simulated": _values(simulated) | {"fitted_loss": self.fitted_loss, "curve": curve},
            **asdict(self.reach),
            "may_collapse": self.may_collapse,
            "unstable": self.unstable,
            "beginning": self.beginning and asdict(self.beginning) | {"followed": self.followed},
            "kernel": self.kernel,
            "cost": {"seconds": self.seconds, "trainable_parameters": self.trainable_parameters},
            "warnings": [warning.text for warning in self.warnings],
            "warning_kinds": [warning.kind for warning in self.warnings],
        }


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
