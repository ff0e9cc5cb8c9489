"""Of ``docs/truth.md``: what the tasks are, and how good forecasts are on each."""

import numpy as np
from paper.reading import paragraph, table
from truth.benchmark import ANOTHER_SEED, OURS, SIMULATED, Benchmark
from truth.calibrate import learnt_on
from truth.candidates import LINK
from truth.grid import TASKS
from truth.metrics import evaluate
from truth.units import metric, model, number, percent

PREDICTED = {  # what is predicted from the texts of a builder
    "movie": "sentiment of a sentence from a movie review",
    "tweets": "sentiment of a tweet, three classes",
    "amazon": "rating of a sentence from a product review",
    "editorials": "rating of a sentence from a newspaper editorial",
    "subjectivity": "whether a sentence tells an opinion or the plot of a film",
    "newsgroups": "which of 20 newsgroups a message was posted to",
    "order": "whether words of a sentence were swapped",
    "questions": "whether a sentence holds the answer to a question",
    "reuters": "topic of a newswire article, eight classes",
    "fresh": "whether a critic recommends a film",
    "party": "party of a speech",
    "articles": "topic of a news article, five classes",
    "messages": "rating of a short message, four grades",
    "author": "which of two candidates wrote a message",
    "beliefs": "whether a sentence about somebody's belief follows from another",
}


def tasks_section(benchmark: Benchmark) -> list[str]:
    """What the tasks are."""
    rows = []
    for task, truth in zip(benchmark.tasks, benchmark.truths, strict=True):
        setting = TASKS[task["name"]]
        ends = f"{metric(np.nanmin(truth.mean), task)} to {metric(np.nanmax(truth.mean), task)}"
        rows.append(
            [
                task["name"],
                PREDICTED[setting.builder],
                model(task),
                "Pearson's r" if task["metric_name"] == "pearson" else "accuracy, %",
                f"{setting.train} × {setting.epochs}",
                str(len(truth.candidates)),
                str(len(truth.seeds)),
                ends,
            ]
        )
    head = ["task", "predicted", "model", "metric", "texts × epochs", "candidates", "seeds", "worst to best"]
    return [
        "## The tasks",
        "",
        *table(head, rows),
        *paragraph(
            "The [candidates](glossary.md#candidate) of a task differ in the layers and modules that LoRA adapts, in "
            "its rank and scaling, and in the learning rate (three rates, a factor 3 apart). *Worst* and *best* are "
            "means over seeds. The head is new and reads the mean of the tokens; `pooler` and the two tasks of SmolLM2 "
            "use the model's own head. Of a 21st task, `agreement` (does a verb agree with its subject?), one run was "
            "trained. It reached an accuracy of 51.2%, where guessing reaches about 50%, so the task was dropped."
        ),
    ]


def by_task_section(benchmark: Benchmark) -> list[str]:
    """How good forecasts are on each task, beside the simulation and another seed."""
    rows = []
    for i, task in enumerate(benchmark.tasks):
        ours, simulated, other = (benchmark.by_task[name][i] for name in (OURS, SIMULATED, ANOTHER_SEED))
        rows.append(
            [
                f"[{task['name']}]({LINK}#{task['name']})",
                number(ours["kendall"], 2),
                metric(ours["regret"], task),
                metric(ours["mean_absolute_error"], task),
                percent(ours["coverage"]),
                number(ours["loss_kendall"], 2),
                number(ours["loss_mean_absolute_error"], 3),
                triple(simulated, task),
                triple(other, task),
            ]
        )
    head = ["task", "Kendall's τ", "regret", "error", "coverage", "τ of the loss", "error of the loss"]
    return [
        "## Task by task",
        "",
        *paragraph(
            "Regret and error are in points where the metric is accuracy, and in units of Pearson's r for `amazon` and "
            "`editorials`. The last two columns have Kendall's τ, regret and error of the simulation without its "
            "correction, and of another seed."
        ),
        *table([*head, "simulation", "another seed"], rows),
        *paragraph(
            "The corrections were learnt on MiniLM-L6 alone, so the last four tasks show how they carry over to larger "
            "models and to a decoder."
        ),
    ]


def triple(values: dict[str, float], task: dict[str, object]) -> str:
    """Kendall's tau, regret and error of a predictor on a task."""
    regret, error = (metric(values[key], task) for key in ("regret", "mean_absolute_error"))
    return f"{number(values['kendall'], 2)}, {regret}, {error}"


def sizes_section(benchmark: Benchmark) -> list[str]:
    """A few candidates on other numbers of training examples."""
    rows = []
    learnt = [TASKS[task["name"]].train for task in learnt_on(benchmark.tasks)]
    for task, truth, forecast in zip(benchmark.sizes, benchmark.size_truths, benchmark.size_forecasts, strict=True):
        setting, found = TASKS[task["name"]], evaluate([truth], [forecast])
        rows.append(
            [
                setting.builder,
                f"{setting.train:,}",
                str(setting.epochs),
                str(len(truth.candidates)),
                number(found["kendall"], 2),
                metric(found["regret"], task),
                metric(found["mean_absolute_error"], task),
            ]
        )
    return [
        "## Numbers of training examples",
        "",
        *paragraph(
            f"The corrections were learnt on tasks with {min(learnt)} to {max(learnt)} training texts. Here a few "
            "candidates were trained on fewer and on more texts, one seed each. [Every "
            f"candidate]({LINK}#numbers-of-training-examples)."
        ),
        *table(["texts of", "training texts", "epochs", "candidates", "Kendall's τ", "regret", "error"], rows),
    ]
