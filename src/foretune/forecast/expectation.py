"""What one candidate is expected to do: its simulated runs, corrected, with what is known of them."""

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
    corrected,
    corrections,
    evidence,
    gains_little,
    may_collapse,
    unstable,
)
from foretune.forecast.figures import Figures
from foretune.forecast.movement import Reach
from foretune.forecast.sample import Sample, without
from foretune.task import Candidate, Task
from foretune.train.choice import kept_point
from foretune.train.curve import Point, Run


@dataclass(repr=False)
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
    warnings: list[Advice] = field(default_factory=list)

    def __repr__(self) -> str:
        final = self.final
        return (
            f"Forecast({self.candidate.name!r}, {self.metric_name}={final['eval_metric']:.4g}, "
            f"eval_loss={final['eval_loss']:.4g}, warnings={len(self.warnings)})"
        )

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
    def final(self) -> MeanPoint:
        """The point of the curve whose model is kept; its error bars are at least those of the last point.

        Which checkpoint of the real run is the best one is as uncertain as its end.
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
        """Expected metric of the model that is kept."""
        return self.final["eval_metric"]

    @property
    def eval_loss(self) -> float:
        """Expected evaluation loss of the model that is kept."""
        return self.final["eval_loss"]

    def to_json(self) -> dict[str, Any]:
        """The candidate's entry in ``forecast.json``."""
        final = self.final
        predicted: dict[str, Any] = dict(final) | {"metric_name": self.metric_name}
        (simulated,) = (point for point in self.simulated if point["step"] == final["step"])
        return {
            "name": self.candidate.name,
            **self.candidate.to_json(),
            "predicted": predicted | {"curve": self.curve, "seeds": self.seeds},
            "simulated": _values(simulated) | {"fitted_loss": self.fitted_loss},
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
