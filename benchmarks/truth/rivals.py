"""Of ``docs/truth.md``: the other methods that say beforehand which candidate will be best."""

import numpy as np
from paper.reading import listed, paragraph, table
from truth.benchmark import ANOTHER_SEED, AVERAGED, OURS, SIMULATED, Benchmark
from truth.by_task import triple
from truth.resampling import interval
from truth.units import hundredths, number, percent

SAYS = {  # what each of them goes by
    ANOTHER_SEED: "the same run from another seed",
    AVERAGED: "the same, when forecasts and runs are means over seeds",
    OURS: "foretune's forecast",
    SIMULATED: "the simulated run without its correction",
    "probe-10": "the metric after really training 10% of the steps",
    "probe-10-extrapolated": "the same, continued to the end by an exponential",
    "ntk-trace": "trace of the kernel, large first",
    "ntk-alignment": "alignment of the kernel with the labels, high first",
    "ntk-effective-dimension": "effective dimension of the kernel, low first",
    "ntk-condition-number": "condition number κ of the kernel, low first (the paper's claim)",
    "parameters": "number of trainable parameters, large first",
    "random": "chance",
    "always-rslora": "rsLoRA with the largest rank first",
    "without-regret": "all layers at ten times the rate of full fine-tuning (LoRA Without Regret)",
    "kappatune": "the layers that KappaTune chooses by the condition number of their weights",
    "kappatune-mean": "the mean of KappaTune's figure over the candidate's layers",
    "aletheia": "the layers that Aletheia-LoRA chooses by their gradients",
    "aletheia-mean": "the mean of Aletheia-LoRA's figure over the candidate's layers",
    "plop": "the layers that PLoP chooses by the norms of their features",
    "plop-mean": "the mean of PLoP's figure over the candidate's layers",
    "eva": "variance of the layers' inputs that r components explain (EVA), mean over layers",
    "eva-total": "the same, sum over layers",
    "gps": "EvoLoRA's choice by the gradients of the adapters",
    "gps-mean": "mean of EvoLoRA's gradient score over the layers",
    "gps-deviation": "deviation of EvoLoRA's gradient score over the layers, small first",
    "gps-weights": "the gradient score of the frozen weights",
    "logme": "LogME of the frozen features, the same for all candidates",
    "h-score": "H-score of the frozen features, the same for all candidates",
}
BY_TASK = ("parameters", "ntk-trace", "probe-10")
HEAD = ("predictor", "goes by", "Kendall's τ", "regret", "Spearman", "error", "within 3", "coverage")


def rivals_section(benchmark: Benchmark) -> list[str]:
    """Every predictor, and whether ours is better than those of others."""
    rows = []
    for name in (ANOTHER_SEED, AVERAGED, OURS, SIMULATED, *benchmark.rivals):
        values, own = benchmark.scores[name], benchmark.draws.get(name)
        rows.append(
            [
                f"**{name}**" if name == OURS else name,
                SAYS[name],
                f"{number(values['kendall'], 2)}{_interval(own, 'kendall', 2)}",
                f"{hundredths(values['regret'])}{_interval(own, 'regret', 1, 100)}",
                number(values["spearman"], 2),
                hundredths(values["mean_absolute_error"]),
                percent(values["within_3_points"]),
                percent(values["coverage"]),
                number(values["loss_kendall"], 2),
                number(values["loss_mean_absolute_error"], 3),
                number(values["cost"], 2),
                str(benchmark.asked(name)),
            ]
        )
    head = [*HEAD, "τ of the loss", "error of the loss", "cost", "tasks"]
    return [
        "## The other methods",
        "",
        *paragraph(
            "Numbers are means over the tasks that a method was asked about. Brackets are 95% bootstrap intervals over "
            "tasks and candidates. Regret and error are in hundredths of the metric. Cost is the time of a prediction "
            "over that of the real run, with its part of what all candidates share."
        ),
        *table(head, rows),
        *_better(benchmark),
        *paragraph("Three of them, task by task (Kendall's τ, regret, error):"),
        *table(["task", *BY_TASK], _by_task(benchmark)),
        *paragraph(
            "Methods that choose layers are read in two ways: by how far a candidate's layers are those that the "
            "method would choose, and by the mean of the method's figure over the candidate's layers. They do not look "
            "at ranks or learning rates, so candidates that differ only in these tie. How each method was run is in "
            "its docstring in `benchmarks/truth`. Two things make the costs inexact. Real runs and forecasts were "
            "timed by the clock, forecasts beside two other processes on two cores, so forecasts look dearer than they "
            "are. The other methods were timed by their processor time, so they look cheaper. [What it "
            "costs](#what-it-costs) has processor time for both."
        ),
    ]


def _better(benchmark: Benchmark) -> list[str]:
    """Whom we are better than in both statistics, and the intervals of the others."""
    verdicts = {name: benchmark.is_better_than(name) for name in benchmark.rivals}
    won, open_ = ([name for name, better in verdicts.items() if better is kind] for kind in (True, False))
    lines = paragraph(
        f"foretune has a higher Kendall's τ and a lower regret than {len(won)} of the {len(won) + len(open_)} methods "
        f"that order candidates; for each of these both 95% intervals of the difference are above zero: {listed(won)}."
    )
    if open_:
        rows = []
        for name in open_:
            (low, high), (less, more) = benchmark.lead(name)
            rows.append([name, f"[{low:+.2f}, {high:+.2f}]", f"[{100 * less:+.1f}, {100 * more:+.1f}]"])
        lines += paragraph("For the others one of the intervals includes zero:")
        lines += table(["method", "Kendall's τ, ours − theirs", "regret, theirs − ours"], rows)
    return lines


def _by_task(benchmark: Benchmark) -> list[list[str]]:
    return [
        [task["name"], *(triple(benchmark.by_task[name][i], task) for name in BY_TASK)]
        for i, task in enumerate(benchmark.tasks)
    ]


def _interval(own: dict[str, np.ndarray] | None, key: str, digits: int, scale: float = 1) -> str:
    if own is None:
        return ""
    low, high = interval(own[key])
    return "" if np.isnan(low) else f" [{scale * low:.{digits}f}, {scale * high:.{digits}f}]"
