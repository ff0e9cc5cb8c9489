"""Of ``docs/truth.md``: runs that collapse, what is known of those near the limit, and whether warnings are right."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from paper.reading import listed, paragraph
from scipy.stats import mannwhitneyu
from truth.gather import SIGNS, simulation
from truth.metrics import Prediction, Truth

from foretune.forecast.advice import WIDE
from foretune.forecast.beginning import BEGIN
from foretune.forecast.calibration import (
    ASTRAY,
    FOLLOWED,
    LATE,
    LITTLE,
    LOST,
    OPEN,
    STEP,
    TRAVEL,
    UNLEARNT,
    gains_little,
    is_foregone,
    late,
    may_collapse,
    much_open,
    unlearnt,
    unstable,
)

COLLAPSED = 0.5  # of what its simulation gained over guessing: less is a collapse
ENDS = (*SIGNS, "layer_changes", "fitted_loss", "eval_metric")
NEAR = 0.22  # travel from which runs are shown one by one


@dataclass(frozen=True)
class Pair:
    """A real run and the simulation of its seed."""

    task: dict[str, Any]
    candidate: str
    simulated: dict[str, Any]
    metric: float

    @property
    def name(self) -> str:
        """Of its task and its candidate."""
        return f"{self.task['name']} {self.candidate}"

    @property
    def collapsed(self) -> bool:
        """Whether the run gained less than a share of what its simulation gained over guessing."""
        promised = self.simulated["eval_metric"] - self.task["guess"]
        return not gains_little(promised) and self.metric - self.task["guess"] < COLLAPSED * promised

    @property
    def risky(self) -> bool:
        """Whether it may collapse, as simulated."""
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


def collapses(tasks: list[dict[str, Any]]) -> list[str]:
    """Which runs collapsed, and which were expected to."""
    known = pairs(tasks)
    healthy = sum(not pair.collapsed for pair in known)

    def caught(called: list[Pair]) -> str:
        found, false = ([pair.name for pair in called if pair.collapsed is kind] for kind in (True, False))
        others = f"{len(false)} of {healthy} other runs ({listed(_counted(false))})"
        return f"{len(found)} of {len(known) - healthy} and {others}"

    fell, risky, called = ([pair for pair in known if getattr(pair, of)] for of in ("collapsed", "risky", "unstable"))
    missed = [pair.name for pair in fell if not pair.unstable]
    return [
        "## Runs that collapse",
        "",
        *paragraph(
            f"A run counts as collapsed if it gains less than {COLLAPSED:.0%} of what its simulation gains over "
            f"guessing, if that is {100 * LITTLE:.0f} points or more "
            f"({listed(_counted([pair.name for pair in fell]))}). `foretune forecast` warns where all steps together, "
            "were they as large as the largest early one, could lead the network's linear weights more than "
            f"{TRAVEL:.0%} of their size away and that one is above "
            f"{STEP:.1%}, or where those before the training loss begins to fall do lead them more than {ASTRAY:.1%} "
            "away, limits "
            "that were chosen on these very tasks and the runs below: before anything is trained that finds "
            f"{caught(risky)}. Above {LOST:.0%} all did. Of the others of these runs, but those that gain less than "
            f"{100 * LITTLE:.0f} points even as simulated, it then makes the first "
            f"{BEGIN:.0%} and expects those to collapse whose training loss has fallen by less than {FOLLOWED:.0%} of "
            "what was simulated for these steps: "
            f"{caught(called)}; missed: {listed(_counted(missed))}. Of one configuration a seed may collapse and "
            "another do well."
        ),
    ]


def near_the_limit(tasks: list[dict[str, Any]], fast: list[dict[str, Any]]) -> list[str]:
    """Every run with large steps, and what tells those that collapse from others."""
    known = pairs([*tasks, *fast])
    fell = [pair.collapsed for pair in known]
    areas = ", ".join(
        f"{label} {_area(fell, [pair.simulated[key] for pair in known]):.2f}"
        for key, label in (
            ("largest_step", "largest step"),
            ("travel", "travel"),
            ("change_before_learning", "change before learning"),
            ("weight_change", "change of the weights"),
            ("linearity_gap", "linearity gap"),
        )
    )
    by_name: dict[str, list[Pair]] = {}
    for pair in known:
        by_name.setdefault(pair.name, []).append(pair)
    shown = sorted(by_name.values(), key=lambda some: _mean(some, "travel"))
    return [
        "### Near the limit",
        "",
        *paragraph(
            f"All runs that may travel {NEAR:.0%} or more, {sum(len(task['runs']) for task in fast)} runs at learning "
            f"rates that were chosen to find the limit (`{'`, `'.join(task['name'] for task in fast)}`) among them. "
            f"Area under the ROC curve, over all {len(known)} runs: {areas}. Travel is the largest early step times "
            "the sum of all steps' shares of the learning rate. It and step, change before learning, gap and "
            "simulation are means over the seeds; followed: the share of what the simulation learnt in the first "
            f"{BEGIN:.0%} that the real beginning learnt too."
        ),
        "| task | candidate | travel | step | before learning | gap | followed, each seed | simulated "
        "| true, each seed | |",
        "|---|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {some[0].task['name']} | {some[0].candidate} | {_mean(some, 'travel'):.0%} "
            f"| {_mean(some, 'largest_step'):.1%} "
            f"| {_mean(some, 'change_before_learning'):.1%} | {_mean(some, 'linearity_gap'):.2f} "
            f"| {_followed(some)} | {100 * _mean(some, 'eval_metric'):.1f} "
            f"| {', '.join(f'{100 * pair.metric:.1f}' for pair in some)} "
            f"| {'collapsed' if any(pair.collapsed for pair in some) else ''} |"
            for some in shown
            if _mean(some, "travel") >= NEAR
        ),
        "",
    ]


def warnings(tasks: list[dict[str, Any]], truths: list[Truth], forecasts: list[Prediction]) -> list[str]:
    """How many forecasts that are far off were warned of, and how many others."""
    lines = ["## Warnings", ""]
    for what, averaged in (("the run", False), ("the mean over seeds, where forecasts are averaged too", True)):
        far: list[bool] = []
        near: list[bool] = []
        sure: list[float] = []
        stable: list[float] = []
        for task, truth, forecast in zip(tasks, truths, forecasts, strict=True):
            *signs, changes, fits, ends = (of_simulations(task, truth, key) for key in ENDS)
            if averaged:
                truth, forecast = truth.averaged(), forecast.averaged()
                *signs, changes, fits, ends = (np.nanmean(x, 1, keepdims=True) for x in (*signs, changes, fits, ends))
            errors, risky = np.abs(forecast.metric - truth.metric), np.vectorize(may_collapse)(*signs)
            warned = risky | np.vectorize(late)(signs[-1]) | ((forecast.high - forecast.low) / 2 >= WIDE)
            warned |= np.vectorize(unlearnt)(fits, task["outputs"] or 0)
            warned |= np.vectorize(much_open)(task["frozen"], changes)
            foregone = risky & np.vectorize(is_foregone)(*signs[:2], ends - task["guess"])
            warned &= ~foregone
            known = ~np.isnan(errors)
            sure += errors[known & foregone].tolist()
            far += warned[known & (errors > 0.05)].tolist()
            near += warned[known & (errors <= 0.05)].tolist()
            stable += errors[known & ~risky].tolist()
        lines += paragraph(
            f"{len(far)} forecasts are off by more than 5 points of {what}; {sum(far)} of them were warned of, as "
            f"runs that may collapse, that learn late ({LATE:.1%}), that end before they have learnt several classes "
            f"(training loss above {UNLEARNT:.0%} of a uniform guess's), that move far where features tell little "
            f"before training ({OPEN:.0%}) or whose error bar is ±{100 * WIDE:.0f} points or more, and so were "
            f"{sum(near)} of the {len(near)} others. The {len(sure)} that are said to end near guessing without a "
            "beginning are not counted as warned of: nothing of them is open (their largest error "
            f"is {100 * max(sure):.1f} points). Without the candidates that may collapse the mean error is "
            f"{100 * np.mean(stable):.1f} points."
        )
    return lines


def of_simulations(task: dict[str, Any], truth: Truth, key: str) -> np.ndarray:
    """A figure of the simulated runs by candidate and seed; nan where there is none."""
    rows = [[simulation(task, name, seed) or {} for seed in truth.seeds] for name in truth.candidates]
    return np.array([[row.get(key) for row in some] for some in rows], dtype=float)


def _followed(some: list[Pair]) -> str:
    return ", ".join(f"{pair.simulated['followed']:.2f}" for pair in some if pair.simulated["followed"] is not None)


def _mean(some: list[Pair], key: str) -> float:
    return float(np.mean([pair.simulated[key] for pair in some]))


def _counted(names: list[str]) -> list[str]:
    return [f"{name} × {names.count(name)}" if names.count(name) > 1 else name for name in dict.fromkeys(names)]


def _area(positive: list[bool], values: list[float]) -> float:
    """Area under the ROC curve: how often a positive has a larger value than another."""
    ones, others = ([v for v, is_one in zip(values, positive, strict=True) if is_one is kind] for kind in (True, False))
    return float(mannwhitneyu(ones, others).statistic) / (len(ones) * len(others))
