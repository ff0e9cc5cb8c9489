"""``docs/truth/candidates.md``: the forecast and the real runs of every candidate, with a picture of every task."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from paper.plot import Axis, Series, picture
from paper.reading import paragraph, table
from truth.benchmark import OURS, SIMULATED, Benchmark
from truth.gather import simulation
from truth.grid import TASKS
from truth.metrics import Prediction, Truth
from truth.units import metric, number, percent

LINK = "truth/candidates.md"  # from the page that leads
COLUMNS = ("eval_metric", "eval_loss", "largest_step", "weight_change", "linearity_gap")
HEAD = ("candidate", "forecast", "simulated", "true", "loss: forecast", "simulated", "true", "step", "weights", "gap")


def candidates_page(benchmark: Benchmark) -> str:
    """The page."""
    lines = [
        "# Every candidate of the truth benchmark",
        "",
        *paragraph(
            "This page has the numbers behind [the truth benchmark](../truth.md): one table and one picture for each "
            "task. All numbers are means over seeds. Metrics are accuracies in percent, and for `amazon` and "
            "`editorials` Pearson's r."
        ),
        "- *Forecast*: ± half the 90% interval ([error bar](../glossary.md#error-bar)).",
        "- *Simulated*: the simulated run without its correction.",
        "- *True*: the real runs, ± the standard deviation over seeds.",
        "- *Loss*: the evaluation loss at the end.",
        "- *Step*: the largest relative change of the linear weights in one of the first steps.",
        "- *Weights*: the relative change of the adapted weights over the whole run.",
        "- *Gap*: the [linearity gap](../glossary.md#linearity-gap) at the end of the simulation.",
        "",
    ]
    for task, truth, forecast in zip(benchmark.tasks, benchmark.truths, benchmark.predictions[OURS], strict=True):
        lines += [f"## {task['name']}", "", f"![{task['name']}]({task['name']}.svg)", ""]
        lines += _table(task, truth, forecast)
    lines += ["## Numbers of training examples", ""]
    for task, truth, forecast in zip(benchmark.sizes, benchmark.size_truths, benchmark.size_forecasts, strict=True):
        setting = TASKS[task["name"]]
        lines += [f"### {setting.builder}, {setting.train:,} training texts", "", *_table(task, truth, forecast)]
    return "\n".join(lines).rstrip() + "\n"


def pictures(benchmark: Benchmark) -> dict[str, str]:
    """Forecast against truth as an SVG, by the name of the task."""
    found = {}
    for i, (task, truth) in enumerate(zip(benchmark.tasks, benchmark.truths, strict=True)):
        series = [
            Series(
                name, _scaled(benchmark.predictions[name][i].averaged().metric, task), _scaled(truth.mean, task), False
            )
            for name in (OURS, SIMULATED)
        ]
        ends = _scaled(np.array([truth.mean.min(), truth.mean.max()]), task)
        series.append(Series("forecast = truth", ends, ends, line=True, colour=2))
        unit = "%" if task["metric_name"] == "accuracy" else "Pearson's r"
        found[task["name"]] = picture(task["name"], Axis(f"forecast, {unit}"), Axis(f"truth, {unit}"), series)
    return found


def of_simulations(task: dict[str, Any], truth: Truth, key: str) -> np.ndarray:
    """A figure of the simulated runs by candidate and seed; nan where there is none."""
    rows = [[simulation(task, name, seed) or {} for seed in truth.seeds] for name in truth.candidates]
    return np.array([[row.get(key) for row in some] for some in rows], dtype=float)


def _scaled(values: np.ndarray, task: dict[str, Any]) -> Sequence[float]:
    scale = 100 if task["metric_name"] == "accuracy" else 1
    return [float(value) for value in scale * values.ravel()]


def _table(task: dict[str, Any], truth: Truth, forecast: Prediction) -> list[str]:
    said = forecast.averaged().map(lambda values: values[:, 0])
    metrics, losses, step, change, gap = (np.nanmean(of_simulations(task, truth, key), 1) for key in COLUMNS)
    rows = []
    for i in np.argsort(-said.metric):
        seeds, loss = truth.metric[i], truth.loss[i]
        several = np.sum(~np.isnan(seeds)) > 1
        spread = f" ± {metric(np.nanstd(seeds, ddof=1), task)}" if several else ""
        half = (said.high[i] - said.low[i]) / 2
        rows.append(
            [
                truth.candidates[i],
                f"{metric(said.metric[i], task)} ± {metric(half, task)}",
                metric(metrics[i], task),
                f"{metric(truth.mean[i], task)}{spread}",
                number(said.loss[i], 3),
                number(losses[i], 3),
                number(np.nanmean(loss), 3),
                percent(step[i], 2),
                percent(change[i], 1),
                number(gap[i], 2),
            ]
        )
    return table(HEAD, rows)
