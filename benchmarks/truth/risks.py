"""Of ``docs/truth.md``: which runs collapse, which forecasts are far off, and which of these were warned of."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from paper.reading import counted, listed, paragraph, table
from truth.benchmark import OURS, Benchmark
from truth.candidates import of_simulations
from truth.gather import SIGNS, simulation
from truth.metrics import Prediction, Truth
from truth.units import SIGNIFICANT, hundredths

from foretune.forecast.advice import WIDE
from foretune.forecast.beginning import BEGIN
from foretune.forecast.calibration import (
    ASTRAY,
    FOLLOWED,
    LATE,
    LITTLE,
    OPEN,
    STEP,
    TRAVEL,
    UNLEARNT,
    gains_little,
    late,
    may_collapse,
    much_open,
    unlearnt,
    unstable,
)

COLLAPSED = 0.5  # of what its simulation gained over guessing: a run that gained less collapsed
EVIDENCE = (*SIGNS, "layer_changes", "fitted_loss", "eval_metric")  # what warnings look at
PAGE = "truth/collapses.md"


@dataclass(frozen=True)
class Pair:
    """A real run and the simulation of its seed."""

    task: dict[str, Any]
    candidate: str
    simulated: dict[str, Any]
    metric: float

    @property
    def name(self) -> str:
        """Its task and its candidate."""
        return f"{self.task['name']} {self.candidate}"

    @property
    def gain(self) -> float:
        """The metric of the real run over that of guessing."""
        return self.metric - self.task["guess"]

    @property
    def collapsed(self) -> bool:
        """Whether the run gained less than a share of what its simulation gained over guessing."""
        promised = self.simulated["eval_metric"] - self.task["guess"]
        return not gains_little(promised) and self.gain < COLLAPSED * promised

    @property
    def risky(self) -> bool:
        """Whether the simulation says that it may collapse."""
        return may_collapse(*(self.simulated[sign] for sign in SIGNS))

    @property
    def unstable(self) -> bool:
        """Whether it was expected to collapse, after its beginning where that was made."""
        return self.risky and unstable(self.simulated["followed"])


def pairs(tasks: list[dict[str, Any]]) -> list[Pair]:
    """Every real run of the tasks whose seed was forecast too."""
    return [
        Pair(task, run["candidate"], found, run["eval_metric"])
        for task in tasks
        for run in task["runs"]
        if (found := simulation(task, run["candidate"], run["seed"]))
    ]


class Caught(NamedTuple):
    """Of some runs that were called, those that collapsed and the others."""

    right: list[Pair]
    wrong: list[Pair]


class Collapses(NamedTuple):
    """Which runs collapsed, and which were called so before and after their beginning."""

    collapsed: list[Pair]
    healthy: int
    risky: Caught
    expected: Caught

    @classmethod
    def of(cls, tasks: list[dict[str, Any]]) -> "Collapses":
        """Those of some tasks."""
        known = pairs(tasks)
        collapsed = [pair for pair in known if pair.collapsed]
        risky, expected = (
            Caught(
                *(
                    [pair for pair in known if getattr(pair, called) and pair.collapsed is kind]
                    for kind in (True, False)
                )
            )
            for called in ("risky", "unstable")
        )
        return cls(collapsed, len(known) - len(collapsed), risky, expected)

    @property
    def missed(self) -> list[Pair]:
        """Those that collapsed although they were not expected to."""
        return [pair for pair in self.collapsed if not pair.unstable]


def collapses_section(benchmark: Benchmark) -> list[str]:
    """Which runs collapsed, and which were expected to."""
    found = Collapses.of(benchmark.tasks)
    wrong = found.expected.wrong
    near = sum(gains_little(pair.gain) for pair in wrong)
    points = f"{LITTLE:g} of the metric ({100 * LITTLE:.0f} points of accuracy)"
    rows = [
        ["may collapse, says the simulation", str(len(found.risky.right)), str(len(found.risky.wrong))],
        ["expected to collapse, after the beginning", str(len(found.expected.right)), str(len(wrong))],
    ]
    return [
        "## Runs that collapse",
        "",
        *paragraph(
            f"{len(found.collapsed)} of {len(found.collapsed) + found.healthy} runs "
            f"[collapsed](glossary.md#collapse): they gained less than {COLLAPSED:.0%} of what their simulation gained "
            f"over guessing. Runs whose simulation gains less than {points} are not counted, because they have nothing "
            "to lose."
        ),
        *table(["called", "runs that collapsed", "other runs"], rows),
        *paragraph(
            f"Of the {len(wrong)} other runs that were expected to collapse, {near} ended less than {points} above "
            f"guessing as well. Missed: {names(found.missed)}. [Which runs these are]({PAGE}). The same candidate may "
            "collapse from one seed and do well from another."
        ),
        *paragraph("`foretune forecast` decides in two steps:"),
        *bullet(
            "Before anything is trained, it looks at the simulation. A run may collapse if all its steps together, "
            f"were they as large as the largest early one, could move the linear weights by more than {TRAVEL:.0%} of "
            f"their size, and the largest early step is above {STEP:.1%}. It may also collapse if the weights move by "
            f"more than {ASTRAY:.1%} before the training loss begins to fall.",
            "1. ",
        ),
        *bullet(
            f"It really trains the first {BEGIN:.0%} of the steps of such a run. The run is expected to collapse if "
            f"its training loss falls by less than {FOLLOWED:.0%} of what was simulated for these steps. Runs whose "
            f"simulation gains less than {points} are expected to end near guessing without this test.",
            "2. ",
        ),
        "",
        *paragraph(
            "These limits were chosen on these very tasks and on runs at high learning rates, so expect them to be "
            "less exact on other tasks."
        ),
    ]


class Warned(NamedTuple):
    """How many forecasts were warned of, of those that are far off and of the others.

    Attributes:
        far: Of each forecast that is far off, whether it was warned of.
        near: Of each other one.
        missed: How many of each task were far off without a warning.
        stable: Mean error of the candidates that cannot collapse.
        foregone: Errors of runs that are said to end near guessing without a beginning.
    """

    far: list[bool]
    near: list[bool]
    missed: Counter[str]
    stable: float
    foregone: list[float]

    @classmethod
    def of(cls, benchmark: Benchmark, averaged: bool) -> "Warned":
        """Of single runs, or of means over seeds."""
        far: list[bool] = []
        near: list[bool] = []
        missed: Counter[str] = Counter()
        stable: list[float] = []
        foregone: list[float] = []
        for task, truth, forecast in zip(benchmark.tasks, benchmark.truths, benchmark.predictions[OURS], strict=True):
            errors, warned, risky, told = _warnings(task, truth, forecast, averaged)
            known = ~np.isnan(errors)
            far += warned[known & (errors > SIGNIFICANT)].tolist()
            near += warned[known & (errors <= SIGNIFICANT)].tolist()
            missed[task["name"]] = int((known & (errors > SIGNIFICANT) & ~warned).sum())
            stable += errors[known & ~risky].tolist()
            foregone += errors[known & told].tolist()
        return cls(far, near, +missed, float(np.mean(stable)), foregone)


def _warnings(
    task: dict[str, Any], truth: Truth, forecast: Prediction, averaged: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of every forecast of a task: its error, and whether it is warned of, may collapse, or is foregone."""
    *signs, changes, fits, ends = (of_simulations(task, truth, key) for key in EVIDENCE)
    if averaged:
        truth, forecast = truth.averaged(), forecast.averaged()
        *signs, changes, fits, ends = (np.nanmean(x, 1, keepdims=True) for x in (*signs, changes, fits, ends))
    risky = _each(may_collapse, *signs)
    warned = risky | _each(late, signs[-1]) | ((forecast.high - forecast.low) / 2 >= WIDE)
    warned |= _each(lambda loss: unlearnt(loss, task["outputs"] or 0), fits)
    warned |= _each(lambda change: much_open(task["frozen"], change), changes)
    foregone = risky & _each(gains_little, ends - task["guess"])
    return np.abs(forecast.metric - truth.metric), warned & ~foregone, risky, foregone


def _each(of: Callable[..., bool], *values: np.ndarray) -> np.ndarray:
    """A predicate of corresponding entries."""
    found = [of(*row) for row in zip(*(each.ravel().tolist() for each in values), strict=True)]
    return np.array(found).reshape(values[0].shape)


def warnings_section(benchmark: Benchmark) -> list[str]:
    """How many forecasts that are far off were warned of, and how many others."""
    single, means = (Warned.of(benchmark, averaged) for averaged in (False, True))
    rows = [
        [
            label,
            str(len(found.far)),
            _share(found.far),
            str(len(found.near)),
            _share(found.near),
            hundredths(found.stable),
        ]
        for label, found in (("single runs", single), ("means over seeds", means))
    ]
    head = ["forecasts of", "far off", "warned of", "others", "warned of", "mean error if it cannot collapse"]
    return [
        "## Warnings",
        "",
        *paragraph(
            f"A forecast is far off if it differs from the run by more than {SIGNIFICANT:g} of the metric "
            f"({100 * SIGNIFICANT:.0f} points of accuracy). The last column is in hundredths of the metric."
        ),
        *table(head, rows),
        *paragraph(
            "Single runs that were far off without a warning: "
            f"{listed([f'{n} of {task}' for task, n in single.missed.items()])}."
        ),
        *paragraph("A forecast counts as warned of if"),
        *bullet("the run may collapse ([above](#runs-that-collapse));"),
        *bullet(f"the linear weights change by more than {LATE:.1%} before the training loss begins to fall;"),
        *bullet(
            "the run has more than four classes and its training loss ends above "
            f"{UNLEARNT:.0%} of that of a uniform guess;"
        ),
        *bullet(
            "the layers move far although the [frozen features](glossary.md#frozen-features) tell little of the "
            f"labels (the product of both is above {OPEN:.0%}); or"
        ),
        *bullet(f"the [error bar](glossary.md#error-bar) is ±{100 * WIDE:.0f} points or more."),
        "",
        *paragraph(
            f"{counted(len(single.foregone), 'run')} are said to end near guessing without a beginning. They do not "
            "count as warned of, because nothing about them is open: their largest error is "
            f"{hundredths(max(single.foregone))} hundredths."
        ),
    ]


def names(some: list[Pair]) -> str:
    """Tasks and candidates, with how many seeds of each."""
    found = Counter(pair.name for pair in some)
    return listed([f"{name} × {count}" if count > 1 else name for name, count in found.items()])


def bullet(text: str, mark: str = "- ") -> list[str]:
    """An item of a list, wrapped."""
    return paragraph(mark + text, " " * len(mark))[:-1]


def _share(warned: list[bool]) -> str:
    return f"{sum(warned)} ({sum(warned) / len(warned):.0%})"
