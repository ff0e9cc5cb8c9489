"""``docs/truth/collapses.md``: runs that collapsed, and all runs that came near the limits from which runs collapse."""

from paper.reading import paragraph, table
from scipy.stats import mannwhitneyu
from truth.benchmark import Benchmark
from truth.risks import Collapses, Pair, bullet, names, pairs
from truth.units import metric, percent

NEAR = 0.22  # travel from which runs are shown one by one
LABELS = {
    "largest_step": "largest step",
    "travel": "travel",
    "change_before_learning": "change before learning",
    "weight_change": "change of the weights",
    "linearity_gap": "linearity gap",
}
HEAD = ("task", "candidate", "travel", "step", "before learning", "gap", "followed", "simulated", "true", "")


def collapses_page(benchmark: Benchmark) -> str:
    """The page."""
    found, known = Collapses.of(benchmark.tasks), pairs([*benchmark.tasks, *benchmark.fast])
    by_name: dict[str, list[Pair]] = {}
    for pair in known:
        by_name.setdefault(pair.name, []).append(pair)
    shown = sorted(by_name.values(), key=lambda some: _mean(some, "travel"))
    runs = sum(len(task["runs"]) for task in benchmark.fast)
    lines = [
        "# Runs that collapse",
        "",
        *paragraph(
            "This page has the numbers behind [the truth benchmark](../truth.md#runs-that-collapse), which explains "
            "when a run counts as collapsed and how `foretune forecast` tells."
        ),
        "## Which runs",
        "",
        *bullet(f"**Collapsed**: {names(found.collapsed)}."),
        *bullet(f"**Missed**: {names(found.missed)}."),
        *bullet(f"**Other runs that may collapse, says the simulation**: {names(found.risky.wrong)}."),
        *bullet(f"**Other runs that were expected to collapse after their beginning**: {names(found.expected.wrong)}."),
        "",
        "## What tells them",
        "",
        *paragraph(
            "Large steps tell a collapse best. The table has the area under the ROC curve over all "
            f"{len(known)} runs: how often a run that collapsed has a larger value than one that did not. {runs} of "
            "these runs are at learning rates that were chosen to find the limit "
            f"(`{'`, `'.join(task['name'] for task in benchmark.fast)}`)."
        ),
        *table(list(LABELS.values()), [[f"{area(known, key):.2f}" for key in LABELS]]),
        "## Near the limit",
        "",
        *paragraph(
            f"All candidates that may travel {percent(NEAR)} or more, in the order of travel. Numbers are means over "
            "seeds, but *followed* and *true* are given for each seed. Metrics are accuracies in percent, and for "
            "`amazon` and `editorials` Pearson's r."
        ),
        *bullet("*Travel*: the largest early step times the sum of all steps' shares of the learning rate."),
        *bullet("*Step*: the largest relative change of the linear weights in an early step."),
        *bullet("*Before learning*: their relative change before the training loss begins to fall."),
        *bullet("*Gap*: the [linearity gap](../glossary.md#linearity-gap)."),
        *bullet("*Followed*: how much of what the simulation learnt in the beginning the real run learnt there."),
        "",
        *table(HEAD, [_row(some) for some in shown if _mean(some, "travel") >= NEAR]),
    ]
    return "\n".join(lines).rstrip() + "\n"


def area(known: list[Pair], key: str) -> float:
    """Area under the ROC curve: how often a collapsed run has a larger value than another one."""
    ones, others = ([pair.simulated[key] for pair in known if pair.collapsed is kind] for kind in (True, False))
    return float(mannwhitneyu(ones, others).statistic) / (len(ones) * len(others))


def _row(some: list[Pair]) -> list[str]:
    task = some[0].task
    cells = [task["name"], some[0].candidate, percent(_mean(some, "travel")), percent(_mean(some, "largest_step"), 1)]
    cells += [percent(_mean(some, "change_before_learning"), 1), f"{_mean(some, 'linearity_gap'):.2f}"]
    cells.append(", ".join(f"{p.simulated['followed']:.2f}" for p in some if p.simulated["followed"] is not None))
    cells += [metric(_mean(some, "eval_metric"), task), ", ".join(metric(pair.metric, task) for pair in some)]
    return [*cells, "collapsed" if any(pair.collapsed for pair in some) else ""]


def _mean(some: list[Pair], key: str) -> float:
    return sum(pair.simulated[key] for pair in some) / len(some)
