"""``docs/truth.md`` and its pictures from ``benchmarks/results/truth``: every number in them comes from there.

python benchmarks/truth/document.py
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import mannwhitneyu

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from paper.plot import Axis, Series, picture
from paper.reading import DOCS, paragraph
from truth.calibrate import UNKNOWN, learnt_on
from truth.cost import section
from truth.gather import prediction_of, read_fast, read_sizes, read_tasks, simulation, truth_of
from truth.grid import TASKS
from truth.metrics import Prediction, Truth, another_seed, bootstrap, evaluate, interval
from truth.ours import left_out, simulated

from foretune.forecast.advice import WIDE
from foretune.forecast.beginning import BEGIN
from foretune.forecast.calibration import (
    ASTRAY,
    FOLLOWED,
    LATE,
    UNLEARNT,
    UNSTABLE,
    late,
    may_collapse,
    unlearnt,
    unstable,
)

OURS = "foretune"
COMPARED = ("kendall", "regret")
COLLAPSED = 0.5  # of what its simulation gained over guessing: less is a collapse
GAIN = 0.05  # over guessing, that a simulation must promise for its run to collapse
NEAR = 0.007  # relative size of steps from which runs are shown one by one


def document(tasks: list[dict[str, Any]], sizes: list[dict[str, Any]], fast: list[dict[str, Any]]) -> str:
    """The page, for tasks with simulations, those with other numbers of training examples, those that may collapse."""
    truths = [truth_of(task) for task in tasks]
    predictors = predictions(tasks, truths)
    scores = {name: evaluate(truths, found) for name, found in predictors.items()}
    several = [i for i, truth in enumerate(truths) if truth.metric.shape[1] > 1]
    floors = {
        "*another seed*": evaluate(*map(list, zip(*(another_seed(truths[i]) for i in several), strict=True))),
        "*foretune, against means over seeds*": evaluate(
            [truths[i].averaged() for i in several], [predictors[OURS][i].averaged() for i in several]
        ),
    }
    draws = bootstrap(truths, predictors, COMPARED)
    return "\n".join(
        [
            *_head(tasks, truths),
            *_predictors(scores, floors, draws),
            *_against(scores, draws),
            *_by_task(tasks, truths, predictors),
            *_collapse(tasks),
            *_near_the_limit(tasks, fast),
            *_warnings(tasks, truths, predictors[OURS]),
            *section(tasks),
            *_sizes(sizes, tasks),
            *_candidates(tasks, truths, predictors[OURS]),
        ]
    )


def predictions(tasks: list[dict[str, Any]], truths: list[Truth]) -> dict[str, list[Prediction]]:
    """Every predictor's predictions for every task; ours are learnt on the other tasks."""
    names = sorted({name for task in tasks for name in task["scores"]})
    forecasts = left_out(tasks, learnt_on(tasks))
    said = {OURS: forecasts, "as simulated": [simulated(task) for task in tasks]}
    said |= {name: [task["scores"].get(name, {}) for task in tasks] for name in names}
    return {
        name: [prediction_of(scores, truth) for scores, truth in zip(own, truths, strict=True)]
        for name, own in said.items()
    }


def _head(tasks: list[dict[str, Any]], truths: list[Truth]) -> list[str]:
    runs = sum(len(task["runs"]) for task in tasks)
    hours = sum(run["seconds"] for task in tasks for run in task["runs"]) / 3600
    machine = tasks[0]["machine"]
    return [
        "# The truth benchmark",
        "",
        *paragraph(
            f"{runs} real fine-tunes of {len(tasks)} tasks against everything that claims to know beforehand which of "
            "them to choose. Reproduce with `python benchmarks/truth/train.py`, `forecasts.py`, `score.py`, "
            "`gather.py`, `calibrate.py` and `document.py` there; results are in `benchmarks/results/truth`. "
            f"{hours:.1f} hours of one core on {machine['platform']}, beside other work."
        ),
        *paragraph(
            "Errors are those of single runs, so that *another seed*, which predicts a run by the same run from "
            "another seed, is a predictor like any other: the noise floor. Every run is held against the forecast of "
            "its own seed, which knows its head, its adapters and its batches, and a probe against the runs that it "
            "begins; other predictors know of no seed. Regret is what choosing a predictor's first "
            "candidate costs against the best, on means over seeds, in points (hundredths of accuracy or correlation). "
            "The correction that foretune makes was learnt on the other tasks only. Cost is the seconds of a "
            "prediction, its part of what all candidates share included, over those of the real run. Real runs (the "
            "fastest seed of each) and forecasts were timed by the clock, forecasts beside two other processes on two "
            "cores, which makes them look dearer than they are, other predictors by their processor time, which makes "
            "them look cheaper; for processor time of both see below."
        ),
        *paragraph(
            f"Models: {_list(sorted({task['model'] for task in tasks}))}; all corrections were learnt on minilm, so "
            "that the others show how they carry over. Acceptability is that of the order of words (`order`); on the "
            "agreement of subject and verb (`agreement`) these models do no better than guessing."
            + "".join(
                f" Of {task['name']} {len(task['simulated'])} of {truth.metric.shape[1]} seeds were forecast."
                for task, truth in zip(tasks, truths, strict=True)
                if len(task["simulated"]) < truth.metric.shape[1]
            )
        ),
        "| task | model | metric | candidates trained | seeds | worst and best, % |",
        "|---|---|---|---|---|---|",
        *(
            f"| {task['name']} | {task['model']} | {task['metric_name']} "
            f"| {len({run['candidate'] for run in task['runs']})} | {truth.metric.shape[1]} "
            f"| {100 * np.nanmin(truth.mean):.1f} to {100 * np.nanmax(truth.mean):.1f} |"
            for task, truth in zip(tasks, truths, strict=True)
        ),
        "",
    ]


def _predictors(
    scores: dict[str, dict[str, float]], floors: dict[str, dict[str, float]], draws: dict[str, dict[str, np.ndarray]]
) -> list[str]:
    lines = [
        "## Who predicts what",
        "",
        "Means over tasks, with 95% bootstrap intervals over tasks and candidates.",
        "",
        "| predictor | Kendall | regret | Spearman | error | within 3 | in interval | loss Kendall | error | cost |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    rows = {name: values for name, values in sorted(scores.items(), key=lambda each: -_known(each[1]["kendall"]))}
    for name, values in (floors | rows).items():
        own = draws.get(name)
        lines.append(
            f"| {f'**{name}**' if name == OURS else name} | {_number(values['kendall'], 2)}{_interval(own, 'kendall')} "
            f"| {_number(values['regret'], 1, 100)}{_interval(own, 'regret', 100)} | {_number(values['spearman'], 2)} "
            f"| {_number(values['mean_absolute_error'], 1, 100)} | {_number(values['within_3_points'], 0, 100, '%')} "
            f"| {_number(values['coverage'], 0, 100, '%')} | {_number(values['loss_kendall'], 2)} "
            f"| {_number(values['loss_mean_absolute_error'], 3)} | {_number(values['cost'], 2)} |"
        )
    return [*lines, ""]


def _against(scores: dict[str, dict[str, float]], draws: dict[str, dict[str, np.ndarray]]) -> list[str]:
    won, open_ = [], []
    for name in scores:
        if name in (OURS, "as simulated"):
            continue
        better = interval(draws[OURS]["kendall"] - draws[name]["kendall"])
        cheaper = interval(draws[name]["regret"] - draws[OURS]["regret"])
        if np.isnan(better[0]) or np.isnan(cheaper[0]):
            continue
        (won if better[0] > 0 and cheaper[0] > 0 else open_).append((name, better, cheaper))
    lines = ["## Ours against each", "", "On the tasks that the other one was asked about.", ""]
    if won:
        lines += paragraph(
            f"Better in Kendall and in regret, with intervals above zero: {', '.join(n for n, *_ in won)}."
        )
    if open_:
        lines += [
            "Not shown to be better in both:",
            "",
            "| predictor | Kendall, ours − theirs | regret, theirs − ours, points |",
            "|---|---|---|",
            *(
                f"| {name} | [{low:+.2f}, {high:+.2f}] | [{100 * less:+.1f}, {100 * more:+.1f}] |"
                for name, (low, high), (less, more) in open_
            ),
            "",
        ]
    return lines


def _by_task(tasks: list[dict[str, Any]], truths: list[Truth], predictors: dict[str, list[Prediction]]) -> list[str]:
    lines = ["## Task by task", ""]
    shown = [OURS, "as simulated", *(name for name in ("parameters", "ntk-trace", "probe-10") if name in predictors)]
    lines += ["| task | " + " | ".join(f"{name}: Kendall, regret, error" for name in [*shown, "another seed"]) + " |"]
    lines += ["|---" * (len(shown) + 2) + "|"]
    for i, (task, truth) in enumerate(zip(tasks, truths, strict=True)):
        cells = [_cell(evaluate([truth], [predictors[name][i]])) for name in shown]
        cells.append(_cell(evaluate(*([x] for x in another_seed(truth)))) if truth.metric.shape[1] > 1 else "–")
        lines.append(f"| {task['name']} | {' | '.join(cells)} |")
    lines.append("")
    for i, (task, truth) in enumerate(zip(tasks, truths, strict=True)):
        series = [
            Series(name, _percent(predictors[name][i].averaged().metric), _percent(truth.mean), line=False)
            for name in (OURS, "as simulated")
        ]
        ends = _percent(np.array([truth.mean.min(), truth.mean.max()]))
        series.append(Series("forecast = truth", ends, ends, line=True, colour=2))
        svg = picture(task["name"], Axis("forecast, %"), Axis("truth, %"), series)
        (DOCS / "truth").mkdir(exist_ok=True)
        (DOCS / "truth" / f"{task['name']}.svg").write_text(svg, encoding="utf-8")
        lines.append(f"![{task['name']}](truth/{task['name']}.svg)")
    return [*lines, ""]


def _cell(values: dict[str, float]) -> str:
    numbers = [_number(values["kendall"], 2), _number(values["regret"], 1, 100)]
    return ", ".join([*numbers, _number(values["mean_absolute_error"], 1, 100)])


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
        return promised >= GAIN and self.metric - self.task["guess"] < COLLAPSED * promised

    @property
    def risky(self) -> bool:
        """Whether it may collapse, as simulated."""
        return may_collapse(self.simulated["largest_step"], self.simulated["change_before_learning"])

    @property
    def unstable(self) -> bool:
        """Whether it was expected to collapse, after its beginning where that was made."""
        return self.risky and unstable(self.simulated["followed"])


def pairs(tasks: list[dict[str, Any]]) -> list[Pair]:
    """Every real run of the tasks whose seed was forecast too."""
    return [
        Pair(task, run["candidate"], UNKNOWN | found, run["eval_metric"])
        for task in tasks
        for run in task["runs"]
        if (found := simulation(task, run["candidate"], run["seed"]))
    ]


def _collapse(tasks: list[dict[str, Any]]) -> list[str]:
    known = pairs(tasks)
    healthy = sum(not pair.collapsed for pair in known)

    def caught(called: list[Pair]) -> str:
        found, false = ([pair.name for pair in called if pair.collapsed is kind] for kind in (True, False))
        others = f"{len(false)} of {healthy} other runs ({_list(_counted(false))})"
        return f"{len(found)} of {len(known) - healthy} and {others}"

    fell, risky, called = ([pair for pair in known if getattr(pair, of)] for of in ("collapsed", "risky", "unstable"))
    missed = [pair.name for pair in fell if not pair.unstable]
    return [
        "## Runs that collapse",
        "",
        *paragraph(
            f"A run counts as collapsed if it gains less than {COLLAPSED:.0%} of what its simulation gains over "
            f"guessing, if that is {100 * GAIN:.0f} points or more ({_list(_counted([pair.name for pair in fell]))}). "
            f"`foretune forecast` warns where one of the first steps changes the network's linear weights by more than "
            f"{UNSTABLE:.1%} or all steps before the training loss begins to fall by more than {ASTRAY:.1%}, limits "
            "that were chosen on these very tasks and the runs below: before anything is trained that finds "
            f"{caught(risky)}. Of these runs it then makes the first {BEGIN:.0%} and expects those to collapse whose "
            f"training loss has fallen by less than {FOLLOWED:.0%} of what was simulated for these steps: "
            f"{caught(called)}; missed: {_list(_counted(missed))}. Of one configuration a seed may collapse and "
            "another do well."
        ),
    ]


def _near_the_limit(tasks: list[dict[str, Any]], fast: list[dict[str, Any]]) -> list[str]:
    known = pairs([*tasks, *fast])
    fell = [pair.collapsed for pair in known]
    areas = ", ".join(
        f"{label} {_area(fell, [pair.simulated[key] for pair in known]):.2f}"
        for key, label in (
            ("largest_step", "largest step"),
            ("change_before_learning", "change before learning"),
            ("weight_change", "change of the weights"),
            ("linearity_gap", "linearity gap"),
        )
    )
    by_name: dict[str, list[Pair]] = {}
    for pair in known:
        by_name.setdefault(pair.name, []).append(pair)
    shown = sorted(by_name.values(), key=lambda some: _mean(some, "largest_step"))
    return [
        "### Near the limit",
        "",
        *paragraph(
            f"All runs with steps of {NEAR:.1%} or more, {sum(len(task['runs']) for task in fast)} runs at learning "
            f"rates that were chosen to find the limit (`{'`, `'.join(task['name'] for task in fast)}`) among them. "
            f"Area under the ROC curve, over all {len(known)} runs: {areas}. Step, change before learning, gap and "
            "simulation are means over the seeds; followed: the share of what the simulation "
            f"learnt in the first {BEGIN:.0%} that the real beginning learnt too."
        ),
        "| task | candidate | step | before learning | gap | followed, each seed | simulated | true, each seed | |",
        "|---|---|---|---|---|---|---|---|---|",
        *(
            f"| {some[0].task['name']} | {some[0].candidate} | {_mean(some, 'largest_step'):.1%} "
            f"| {_mean(some, 'change_before_learning'):.1%} | {_mean(some, 'linearity_gap'):.2f} "
            f"| {_followed(some)} | {100 * _mean(some, 'eval_metric'):.1f} "
            f"| {', '.join(f'{100 * pair.metric:.1f}' for pair in some)} "
            f"| {'collapsed' if any(pair.collapsed for pair in some) else ''} |"
            for some in shown
            if _mean(some, "largest_step") >= NEAR
        ),
        "",
    ]


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


def _warnings(tasks: list[dict[str, Any]], truths: list[Truth], forecasts: list[Prediction]) -> list[str]:
    lines = ["## Warnings", ""]
    for what, averaged in (("the run", False), ("the mean over seeds, where forecasts are averaged too", True)):
        far: list[bool] = []
        near: list[bool] = []
        stable: list[float] = []
        for task, truth, forecast in zip(tasks, truths, forecasts, strict=True):
            figures = ("largest_step", "change_before_learning", "fitted_loss")
            steps, ways, fits = (_of_simulations(task, truth, key) for key in figures)
            if averaged:
                truth, forecast = truth.averaged(), forecast.averaged()
                steps, ways, fits = (np.nanmean(each, 1, keepdims=True) for each in (steps, ways, fits))
            errors, risky = np.abs(forecast.metric - truth.metric), np.vectorize(may_collapse)(steps, ways)
            warned = risky | np.vectorize(late)(ways) | ((forecast.high - forecast.low) / 2 >= WIDE)
            warned |= np.vectorize(unlearnt)(fits, task["outputs"] or 0)
            known = ~np.isnan(errors)
            far += warned[known & (errors > 0.05)].tolist()
            near += warned[known & (errors <= 0.05)].tolist()
            stable += errors[known & ~risky].tolist()
        lines += paragraph(
            f"{len(far)} forecasts are off by more than 5 points of {what}; {sum(far)} of them were warned of, as "
            f"runs that may collapse, that learn late ({LATE:.2%}), that end before they have learnt several classes "
            f"(training loss above {UNLEARNT:.0%} of a uniform guess's) or whose error bar is ±{100 * WIDE:.0f} points "
            f"or more, and so were {sum(near)} of the {len(near)} others. Without the candidates that may collapse the "
            f"mean error is {100 * np.mean(stable):.1f} points."
        )
    return lines


def _of_simulations(task: dict[str, Any], truth: Truth, key: str) -> np.ndarray:
    """A figure of the simulated runs by candidate and seed; nan where there is none."""
    rows = [[simulation(task, name, seed) or {} for seed in truth.seeds] for name in truth.candidates]
    return np.array([[row.get(key) for row in some] for some in rows], dtype=float)


def _candidates(tasks: list[dict[str, Any]], truths: list[Truth], forecasts: list[Prediction]) -> list[str]:
    lines = [
        "## Every candidate",
        "",
        *paragraph(
            "In points, means over seeds; ± is the half-width of the 90% interval, or the spread of seeds. Step: the "
            "largest change of the linear weights in one step; weights: the change of the adapted ones in the run; "
            "gap: the linearity gap at its end."
        ),
    ]
    for task, truth, forecast in zip(tasks, truths, forecasts, strict=True):
        lines += [f"### {task['name']}", "", *_table(task, truth, forecast)]
    return lines


def _table(task: dict[str, Any], truth: Truth, forecast: Prediction) -> list[str]:
    lines = ["| candidate | forecast | simulated | true | loss | simulated | true | step | weights | gap |"]
    lines += ["|---|---|---|---|---|---|---|---|---|---|"]
    said = forecast.averaged().map(lambda values: values[:, 0])
    keys = ("eval_metric", "eval_loss", "largest_step", "weight_change", "linearity_gap")
    metrics, losses, step, change, gap = (np.nanmean(_of_simulations(task, truth, key), 1) for key in keys)
    for i in np.argsort(-said.metric):
        metric, loss = truth.metric[i], truth.loss[i]
        several = np.sum(~np.isnan(metric)) > 1
        spread = f" ± {100 * np.nanstd(metric, ddof=1):.1f}" if several else ""
        lines.append(
            f"| {truth.candidates[i]} | {100 * said.metric[i]:.1f} ± {50 * (said.high[i] - said.low[i]):.1f} "
            f"| {100 * metrics[i]:.1f} | {100 * truth.mean[i]:.1f}{spread} | {said.loss[i]:.3f} "
            f"| {losses[i]:.3f} | {np.nanmean(loss):.3f} | {step[i]:.2%} | {change[i]:.1%} | {gap[i]:.2f} |"
        )
    return [*lines, ""]


def _sizes(sizes: list[dict[str, Any]], tasks: list[dict[str, Any]]) -> list[str]:
    """A few candidates on other numbers of training examples."""
    lines = ["## Numbers of training examples", ""]
    lines += paragraph(
        "A few candidates on fewer and on more examples; all that corrects the forecasts was learnt on 256 to 600 of "
        "other texts."
    )
    for task, scores in zip(sizes, left_out(sizes, learnt_on(tasks)), strict=True):
        truth = truth_of(task)
        forecast = prediction_of(scores, truth)
        found = evaluate([truth], [forecast])
        lines += [f"### {TASKS[task['name']].train:,} examples of {TASKS[task['name']].builder}", ""]
        lines += _table(task, truth, forecast)
        lines += [f"Mean error {_number(found['mean_absolute_error'], 1, 100)} points.", ""]
    return lines


def _percent(values: np.ndarray) -> list[float]:
    return [float(value) for value in 100 * values.ravel()]


def _list(names: list[str]) -> str:
    return ", ".join(names) or "none"


def _interval(own: dict[str, np.ndarray] | None, name: str, scale: float = 1) -> str:
    if own is None:
        return ""
    low, high = interval(own[name])
    digits = 2 if scale == 1 else 1
    return "" if np.isnan(low) else f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"


def _known(value: float) -> float:
    return -2.0 if np.isnan(value) else value


def _number(value: float, digits: int, scale: float = 1, unit: str = "") -> str:
    return "–" if np.isnan(value) else f"{scale * value:.{digits}f}{unit}"


if __name__ == "__main__":
    path = DOCS / "truth.md"
    path.write_text(document(read_tasks(), read_sizes(), read_fast()).rstrip() + "\n", encoding="utf-8")
    print(f"wrote {path}")
