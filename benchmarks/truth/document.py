"""``docs/truth.md``, the pages below ``docs/truth`` and their pictures, from ``benchmarks/results``.

python benchmarks/truth/document.py
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from paper.reading import DOCS, paragraph, table
from truth import cost, recommended
from truth.benchmark import ANOTHER_SEED, AVERAGED, OURS, SIMULATED, Benchmark
from truth.by_task import by_task_section, sizes_section, tasks_section
from truth.candidates import candidates_page, pictures
from truth.cost import Cost
from truth.grid import EVAL_SAMPLES
from truth.limits import collapses_page
from truth.recommended import Worth
from truth.risks import Collapses, Warned, bullet, collapses_section, warnings_section
from truth.rivals import SAYS, rivals_section
from truth.units import SIGNIFICANT, hundredths, metric, model, number, percent

LEADING = (
    ANOTHER_SEED,
    OURS,
    AVERAGED,
    SIMULATED,
    "probe-10",
    "ntk-trace",
    "parameters",
    "random",
    "ntk-condition-number",
)


def pages(benchmark: Benchmark) -> dict[str, str]:
    """All pages and pictures, by their path below ``docs``."""
    lines = [
        *head(benchmark),
        *how_measured(benchmark),
        *tasks_section(benchmark),
        *by_task_section(benchmark),
        *sizes_section(benchmark),
        *rivals_section(benchmark),
        *recommended.section(benchmark.tasks),
        *collapses_section(benchmark),
        *warnings_section(benchmark),
        *cost.section(benchmark.tasks),
    ]
    return {
        "truth.md": "\n".join(lines).rstrip() + "\n",
        "truth/candidates.md": candidates_page(benchmark),
        "truth/collapses.md": collapses_page(benchmark),
    } | {f"truth/{name}.svg": svg for name, svg in pictures(benchmark).items()}


def head(benchmark: Benchmark) -> list[str]:
    """What was done, and what to expect."""
    runs = sum(len(task["runs"]) for task in benchmark.tasks)
    lines = [
        "# The truth benchmark",
        "",
        *paragraph(
            f"How right are foretune's [forecasts](glossary.md#forecast)? {runs} [real runs](glossary.md#real-run) of "
            f"{len(benchmark.tasks)} tasks were trained, and each was compared with its forecast. "
            f"{len(benchmark.rivals)} other methods that say beforehand which fine-tune will be best were asked about "
            "the same runs. [Accuracy](accuracy.md) says what this means for your own fine-tune."
        ),
        "## What to expect",
        "",
        *_leading_table(benchmark),
        *paragraph(
            "Numbers are means over tasks. [Kendall's τ](glossary.md#kendalls-τ) compares the predicted order of "
            "candidates with the true one. [Regret](glossary.md#regret) is what it costs to train the candidate that "
            "is ranked first. *Within 3* is the share of forecasts that are off by at most 3 hundredths of the metric, "
            "and [coverage](glossary.md#coverage) the share of runs inside their 90% interval. Regret and error are in "
            "hundredths of the metric: [points](glossary.md#points) of accuracy on "
            f"{_number_of(benchmark, 'accuracy')} tasks, hundredths of Pearson's r on "
            f"{_number_of(benchmark, 'pearson')}. *Another seed* predicts a run by the same run from another "
            "[seed](glossary.md#seed), so it shows how much of a run is chance."
        ),
    ]
    lines += paragraph("The same in sentences. Metrics are in hundredths again.")
    for sentence in expectations(benchmark):
        lines += bullet(sentence)
    return [*lines, ""]


def _number_of(benchmark: Benchmark, name: str) -> int:
    return sum(task["metric_name"] == name for task in benchmark.tasks)


def _leading_table(benchmark: Benchmark) -> list[str]:
    rows = []
    for name in LEADING:
        values = benchmark.scores[name]
        rows.append(
            [
                f"**{SAYS[name]}**" if name == OURS else SAYS[name],
                number(values["kendall"], 2),
                hundredths(values["regret"]),
                hundredths(values["mean_absolute_error"]),
                percent(values["within_3_points"]),
                percent(values["coverage"]),
                number(values["loss_kendall"], 2),
                str(benchmark.asked(name)),
            ]
        )
    columns = ["predicted by", "Kendall's τ", "regret", "error", "within 3", "coverage", "τ of the loss", "tasks"]
    return table(columns, rows)


def expectations(benchmark: Benchmark) -> list[str]:
    """What to expect, in sentences."""
    ours, other, simulated = (benchmark.scores[name] for name in (OURS, ANOTHER_SEED, SIMULATED))
    best = benchmark.rivals[0]
    errors = {task["name"]: values["mean_absolute_error"] for task, values in _ours(benchmark)}
    scaled = {task["name"]: metric(errors[task["name"]], task) for task in benchmark.tasks}
    easy, hard = (of(errors, key=errors.__getitem__) for of in (min, max))
    larger = ", ".join(
        f"{scaled[task['name']]} ({model(task)}, `{task['name']}`)"
        for task in benchmark.tasks
        if task["model"] != "minilm"
    )
    better = [benchmark.is_better_than(name) for name in benchmark.rivals]
    fell, warned = Collapses.of(benchmark.tasks), Warned.of(benchmark, averaged=False)
    spent, worth = Cost.of(cost.measured()), Worth.of(recommended.measured())
    return [
        f"**Order.** Kendall's τ between forecasts and runs is {ours['kendall']:.2f}. Between two seeds of the same "
        f"runs it is {other['kendall']:.2f}.",
        f"**First choice.** The candidate that is ranked first ends {hundredths(ours['regret'])} below the best one on "
        f"average. The one that another seed ranks first ends {hundredths(other['regret'])} below.",
        f"**Error.** The forecast metric is off by {hundredths(ours['mean_absolute_error'])} on average, another seed "
        f"by {hundredths(other['mean_absolute_error'])}.",
        f"**Error bars.** {percent(ours['coverage'])} of the runs end inside their 90% interval.",
        f"**Correction.** The simulation alone is off by {hundredths(simulated['mean_absolute_error'])}, and its first "
        f"choice costs {hundredths(simulated['regret'])}.",
        f"**Tasks.** The error is smallest on `{easy}` ({scaled[easy]}) and largest on `{hard}` ({scaled[hard]}). "
        "[All tasks](#task-by-task).",
        f"**Larger models.** The correction was learnt on MiniLM-L6 alone. Errors on other models: {larger}.",
        f"**Other methods.** foretune is better in order and in first choice than {better.count(True)} of the "
        f"{len(better) - better.count(None)} methods that order candidates. The best of these, `{best}`, has a τ of "
        f"{benchmark.scores[best]['kendall']:.2f}. [All methods](#the-other-methods).",
        f"**Collapses.** {len(fell.expected.right)} of the {len(fell.collapsed)} runs that collapsed were expected to, "
        f"and so were {len(fell.expected.wrong)} of the {fell.healthy} others. [How it tells](#runs-that-collapse).",
        f"**Warnings.** {len(warned.far)} forecasts were off by more than {100 * SIGNIFICANT:.0f}. {sum(warned.far)} "
        f"of these had a warning, and so had {sum(warned.near)} of the {len(warned.near)} others. [What it warns "
        "of](#warnings).",
        f"**Recommendations.** What `foretune recommend` chose ended {hundredths(worth.ahead)} above the file's own "
        f"run, which is at a learning rate of 1e-4, and {worth.beside_best} the best candidate known. "
        "[What it chose](#what-is-recommended).",
        f"**Cost.** A forecast takes {spent.alone:.3f} of the processor time of its real run, and {spent.whole:.3f} "
        "with its part of the pass that all candidates share. [All costs](#what-it-costs).",
    ]


def _ours(benchmark: Benchmark) -> list[tuple[dict[str, object], dict[str, float]]]:
    return list(zip(benchmark.tasks, benchmark.by_task[OURS], strict=True))


def how_measured(benchmark: Benchmark) -> list[str]:
    """What was compared with what."""
    hours = sum(run["seconds"] for task in benchmark.tasks for run in task["runs"]) / 3600
    return [
        "## How it was measured",
        "",
        *bullet(
            "Every run is compared with the forecast of its own seed, which knows its head, its adapters and its "
            "batches. Probes are beginnings of the run itself. The other methods know of no seed."
        ),
        *bullet(
            "Errors are those of single runs. Regret is measured on means over seeds, the best that is known of a "
            "candidate."
        ),
        *bullet(
            "The correction of a forecast was learnt on the other tasks only; tasks with the same texts count as one."
        ),
        *bullet(f"Metrics and losses are those of {EVAL_SAMPLES} evaluation texts."),
        *bullet(
            f"The real runs took {hours:.1f} hours on one core, beside other work. Model, machine and package versions "
            "are in `benchmarks/results/truth`."
        ),
        *bullet(
            "`python benchmarks/truth/train.py`, `forecasts.py`, `score.py` and `gather.py` measure everything again. "
            "`calibrate.py` learns the correction, and `document.py` computes every number on this page."
        ),
        "",
    ]


if __name__ == "__main__":
    (DOCS / "truth").mkdir(exist_ok=True)
    for name, text in pages(Benchmark.read()).items():
        (DOCS / name).write_text(text, encoding="utf-8")
    print(f"wrote {DOCS / 'truth.md'} and {DOCS / 'truth'}")
