"""The sections on layers, modules and tasks."""

import math
from collections.abc import Sequence

from paper.ntks import SCRIPT_SAMPLE
from paper.plot import Axis, Series, picture
from paper.reading import (
    correlation,
    counted,
    mean,
    model,
    paragraph,
    points,
    seeds,
    standard_error,
    table,
    where,
    write_picture,
)
from paper.results import Result
from tables import Row

PREDICTORS = {
    "condition_number": "κ of the NTK",
    "condition_number_script_sample": "κ of the NTK, first 32 rows",
    "condition_number_published": "κ of the published script's kernel",
    "trace": "trace of the NTK",
    "parameters": "number of parameters",
    "forecast": "our forecast",
}


def placement_rows(result: Result, task: str, strength: float | None) -> list[Row]:
    """Placements of a task with predictors and outcomes, at one λ or at the most accurate one (None)."""
    rows = []
    for kernel in where(result["kernels"], task=task):
        keys = {"task": task, "placement": kernel["placement"], "seed": kernel["seed"]}
        runs = where(result["runs"], **keys)
        runs = runs if strength is None else where(runs, strength=strength)
        if not runs:
            continue
        run = max(runs, key=lambda row: (row["eval_metric"], -row["eval_loss"]))
        same = {"task": task, "strength": run["strength"], "placement": kernel["placement"]}
        for found in where(result["forecasts"], **same):
            rows.append(
                kernel | run | {"forecast_accuracy": found["eval_metric"], "forecast_loss": found["train_loss"]}
            )
    return rows


def compared(result: Result) -> list[str]:
    """Tasks of which all placements were run at some λ."""
    return [task for task in result["settings"]["tasks"] if choices(result, task)]


def predictor(rows: Sequence[Row], name: str, outcome: str) -> list[float]:
    """A predictor of an outcome, which for the forecast is the forecast outcome itself."""
    key = {"eval_metric": "forecast_accuracy", "train_loss": "forecast_loss"}[outcome] if name == "forecast" else name
    return [row[key] for row in rows]


def choices(result: Result, task: str) -> list[tuple[str, float | None]]:
    """The λ at which all placements of a task were run, in words, and the best λ of each if that is every λ."""
    total = len(result["settings"]["placements"])
    done = [s for s in result["settings"]["strengths"] if len(placement_rows(result, task, s)) >= total]
    fixed: list[tuple[str, float | None]] = [(f"λ = {strength:g}", strength) for strength in done]
    return [*fixed, ("best λ of each", None)] if len(done) == len(result["settings"]["strengths"]) else fixed


def placements_section(result: Result) -> list[str]:
    """Experiment b."""
    tasks = compared(result)
    spans = []
    for task in tasks:
        values = [row["eval_metric"] for row in placement_rows(result, task, 0)]
        spans.append(f"{100 * (max(values) - min(values)):.1f} points ({task})")
    lines = ["## Which layers and modules", ""]
    lines += [
        *paragraph(
            f"{model(result)}, {len(result['settings']['placements'])} placements, {counted(len(tasks), 'task')}, "
            f"{counted(len(seeds(result['runs'])), 'seed')}, {len(result['runs'])} runs. The tables have Spearman "
            "correlations with 95% intervals from resampling placements. The paper claims a negative correlation of κ "
            "with accuracy and a positive one with the training loss. There are few placements, so an interval that "
            "excludes 0 says much, and one that includes 0 says little. λ is that of the mean loss. *Best λ of each* "
            "is chosen by the accuracy that is then reported. At λ = 0 the accuracies span "
            f"{' and '.join(spans)}, and each has a standard error of {standard_error(result):.1f} points."
        ),
    ]
    for outcome, label in (("eval_metric", "accuracy"), ("train_loss", "training loss")):
        head = [f"predictor of {label}", *(f"{task}, {words}" for task in tasks for words, _ in choices(result, task))]
        rows = []
        for name, title in PREDICTORS.items():
            cells = []
            for task in tasks:
                for _, strength in choices(result, task):
                    chosen = placement_rows(result, task, strength)
                    values = predictor(chosen, name, outcome)
                    cells.append(correlation(values, [row[outcome] for row in chosen]))
            rows.append([title, *cells])
        lines += table(head, rows)
    images = []
    for key, name in (("condition_number", "ntk"), ("condition_number_published", "published")):
        series = []
        for task in tasks:
            chosen = [row for row in placement_rows(result, task, 0) if math.isfinite(row[key])]
            series.append(
                Series(task, [row[key] for row in chosen], [100 * row["eval_metric"] for row in chosen], line=False)
            )
        title = f"Accuracy against {PREDICTORS[key]}"
        images.append(write_picture(f"placements-{name}", picture(title, Axis("κ", True), Axis("accuracy, %"), series)))
    lines += [" ".join(images), ""]
    for task in tasks:
        rows = [
            [
                row["placement"],
                f"{row['parameters']:,}",
                f"{row['condition_number']:.3g}",
                f"{row['condition_number_script_sample']:.3g}",
                f"{row['condition_number_published']:.3g}",
                f"{row['trace']:.3g}",
                points(row["eval_metric"]),
                points(row["forecast_accuracy"]),
                f"{row['train_loss']:.3f}",
            ]
            for row in sorted(placement_rows(result, task, 0), key=lambda row: row["condition_number"])
        ]
        head = [f"{task}, λ = 0", "parameters", "κ", "κ, 32 rows", "κ, published", "trace", "accuracy, %"]
        lines += table([*head, "forecast, %", "train loss"], rows)
    return lines


def averaged(result: Result) -> list[Row]:
    """Tasks with means over seeds."""
    rows = []
    for task in result["settings"]["tasks"]:
        kernels, runs = where(result["kernels"], task=task), where(result["runs"], task=task)
        if kernels and runs:
            row = {key: mean(kernels, key) for key in kernels[0] if isinstance(kernels[0][key], int | float)}
            rows.append(
                {"task": task} | row | {key: mean(runs, key) for key in ("eval_metric", "train_loss", "eval_loss")}
            )
    return rows


def tasks_section(result: Result) -> list[str]:
    """Experiment c."""
    rows = averaged(result)
    kinds = ("condition_number", "condition_number_script_sample", "condition_number_published", "trace")
    cells = [
        [
            PREDICTORS[key],
            correlation([row[key] for row in rows], [row["train_loss"] for row in rows]),
            correlation([row[key] for row in rows], [row["eval_metric"] for row in rows]),
        ]
        for key in kinds
    ]
    two = [row for row in rows if row["size_published"] == 2 * SCRIPT_SAMPLE]
    cells.append(
        [
            f"{PREDICTORS['condition_number']}, the {len(two)} tasks of two classes",
            correlation([row["condition_number"] for row in two], [row["train_loss"] for row in two]),
            correlation([row["condition_number"] for row in two], [row["eval_metric"] for row in two]),
        ]
    )
    series = [
        Series(row["task"], [row["condition_number"]], [row["train_loss"]], line=False)
        for row in rows
        if math.isfinite(row["condition_number"])
    ]
    image = write_picture(
        "tasks", picture("Training loss against κ of the NTK", Axis("κ", True), Axis("training loss"), series)
    )
    listed = [
        [row["task"], *(f"{row[key]:.3g}" for key in kinds), f"{row['train_loss']:.3f}", points(row["eval_metric"])]
        for row in sorted(rows, key=lambda row: row["condition_number"])
    ]
    return [
        "## Across tasks",
        "",
        *paragraph(
            f"{model(result)}, one configuration, {len(rows)} tasks, means over "
            f"{counted(len(seeds(result['runs'])), 'seed')}. The table has Spearman correlations with 95% intervals "
            "from resampling tasks. A task with more classes has a larger κ, a higher loss and a lower accuracy for "
            "that reason alone, so the last row of the first table has the tasks of two classes only. Some tasks share "
            "their texts."
        ),
        *table(["predictor", "with training loss", "with accuracy"], cells),
        *table(["task", *(PREDICTORS[key] for key in kinds), "train loss", "accuracy, %"], listed),
        image,
        "",
    ]
