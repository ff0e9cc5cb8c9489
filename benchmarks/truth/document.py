"""``docs/truth.md`` and its pictures from ``benchmarks/results/truth``: every number in them comes from there.

python benchmarks/truth/document.py
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from paper.plot import Axis, Series, picture
from paper.reading import DOCS, listed, paragraph
from truth import recommended
from truth.calibrate import learnt_on
from truth.cost import section
from truth.gather import prediction_of, read_fast, read_sizes, read_tasks, truth_of
from truth.grid import TASKS
from truth.metrics import Prediction, Truth, another_seed, evaluate
from truth.ours import left_out, simulated
from truth.resampling import bootstrap, interval
from truth.risks import collapses, near_the_limit, of_simulations, warnings

OURS = "foretune"


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
    draws = bootstrap(truths, predictors)
    return "\n".join(
        [
            *_head(tasks, truths),
            *_predictors(scores, floors, draws),
            *_against(scores, draws),
            *_by_task(tasks, truths, predictors),
            *recommended.section(),
            *collapses(tasks),
            *near_the_limit(tasks, fast),
            *warnings(tasks, truths, predictors[OURS]),
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
            f"Models: {listed(sorted({task['model'] for task in tasks}))}; all corrections were learnt on minilm, so "
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
    metrics, losses, step, change, gap = (np.nanmean(of_simulations(task, truth, key), 1) for key in keys)
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
