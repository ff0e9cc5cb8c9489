"""The experiments, a section each."""

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from paper.ntks import SCRIPT_SAMPLE
from paper.plot import Axis, Series, picture
from paper.reading import (
    Row,
    by_strength,
    correlation,
    counted,
    mean,
    paragraph,
    points,
    table,
    where,
    write_picture,
)

from foretune.kernel import bounds
from foretune.linear import sum_strength

PREDICTORS = {
    "condition_number": "κ of the NTK",
    "condition_number_script_sample": "κ of the NTK, first 32 rows",
    "condition_number_published": "κ of the published script's kernel",
    "trace": "trace of the NTK",
    "parameters": "number of parameters",
    "forecast": "our forecast",
}


def strength_section(result: dict[str, Any]) -> list[str]:
    """Experiment a, AdamW."""
    runs, tasks = result["runs"], list(result["settings"]["tasks"])
    data, training = result["settings"]["run"]["data"], result["settings"]["run"]["training"]
    n, rate = data["train_samples"], training["learning_rate"]
    rows = []
    for strength in result["settings"]["strengths"]:
        part = where(runs, strength=strength)
        rows.append(
            [
                f"{strength:g}",
                f"{sum_strength(strength, n, 2, 'cross_entropy'):g}",
                f"{rate * strength:.2g}",
                points(mean(part, "eval_metric")),
                f"{mean(part, 'eval_loss'):.3f}",
                f"{mean(part, 'train_loss'):.3f}",
                f"{mean(part, 'distance'):.2f}",
                f"{mean(part, 'nonlinearity'):.2f}",
                f"{mean(part, 'relative'):.2f}",
                f"{mean(part, 'divergence'):.2g}",
                points(mean(part, "agreement")),
                points(mean(part, "metric_linearised")),
            ]
        )
    head = ["λ (mean)", "λ (sum)", "ηλ", "accuracy, %", "eval loss", "train loss", "‖δ‖ of adapters"]
    head += ["‖f−f̄‖/‖f−f0‖", "‖f−f̄‖/‖f‖", "KL, nats", "same label, %", "accuracy of f̄, %"]
    names = [f"{strength:g}" for strength in result["settings"]["strengths"]]
    across = list(range(len(names)))
    pictures = [
        write_picture(
            f"strength-{name}",
            picture(
                title,
                Axis("λ, mean convention", names=names),
                Axis(label),
                [Series(task, across, [scale * y for y in by_strength(result, key, task)]) for task in tasks]
                + [
                    Series(f"{task}, f̄", across, [scale * y for y in by_strength(result, other, task)], colour=i)
                    for i, task in enumerate(tasks)
                    if other
                ],
            ),
        )
        for name, title, label, key, other, scale in (
            ("gap", "Gap to the linearisation", "‖f−f̄‖/‖f−f0‖", "nonlinearity", "", 1),
            ("accuracy", "Accuracy of f, and of f̄ at the same θ", "%", "eval_metric", "metric_linearised", 100),
        )
    ]
    counts = [len({row["seed"] for row in where(runs, task=task)}) for task in tasks]
    seeds = counted(max(counts), "seed") if min(counts) == max(counts) else f"{min(counts)} to {max(counts)} seeds"
    return [
        "## Strength of the proximal term: AdamW and cross-entropy",
        "",
        *paragraph(
            f"Means over {len(tasks)} tasks ({', '.join(tasks)}) and {seeds} ({len(runs)} runs): {n} training and "
            f"{data['eval_samples']} evaluation texts, {training['num_train_epochs']} epochs, rate {rate:g}. f is the "
            "fine-tuned network, f̄ its exact linearisation at the same θ, f0 the network before training. The "
            "proximal term pulls the adapters and not the new head, so at the largest λ it is hardly more than the "
            "head that is trained. λ is printed for the mean loss, which is what `Trainer` minimises, and for the sum."
        ),
        *table(head, rows),
        " ".join(pictures),
        "",
    ]


def p2(row: Row, smoothness: float) -> bounds.LinearisationGap:
    """P2 of a run, from a Lipschitz constant that was only sampled."""
    t = row["rate"] * row["steps"]
    radius = bounds.distance(row["rho0"], row["strength"], t)
    norm = bounds.Bound(row["jacobian_norm"], certified=True)
    beta = bounds.Bound(smoothness, certified=False)
    return bounds.linearisation_gap(
        row["rho0"], row["strength"], t, distance=radius, jacobian_norm=norm, smoothness=beta
    )


def with_bounds(result: dict[str, Any]) -> list[Row]:
    """Runs of gradient descent with P1 and P2 beside the truth."""
    rows = []
    for row in result["runs"]:
        same = where(result["runs"], task=row["task"], seed=row["seed"])
        gap = p2(row, max(each["smoothness"] for each in same))
        reach = bounds.distance(row["rho0"], row["strength"], row["rate"] * row["steps"]).value
        rows.append(row | {"p1": reach, "p2": gap.parameters.value, "p2_outputs": gap.outputs.value})
    return rows


def descent_section(result: dict[str, Any]) -> list[str]:
    """Experiment a, gradient descent."""
    runs, settings = with_bounds(result), result["settings"]
    data, tasks = settings["run"]["data"], list(settings["tasks"])
    rows = []
    for strength in result["settings"]["strengths"]:
        part = where(runs, strength=strength)
        rows.append(
            [
                f"{strength:g}",
                f"{mean(part, 'train_loss'):.3f}",
                f"{mean(part, 'eval_loss'):.2f}",
                f"{mean(part, 'eval_metric'):.3f}",
                f"{mean(part, 'metric_linearised_run'):.3f}",
                f"{mean(part, 'nonlinearity'):.2f}",
                f"{mean(part, 'nonlinearity_run'):.2f}",
                f"{mean(part, 'distance'):.2f}",
                f"{mean(part, 'p1'):.2f}",
                f"{mean(part, 'gap'):.3f}",
                f"{fmean(row['gap_bound'] / row['gap'] for row in part):.2f}",
                f"{fmean(row['p2'] / row['gap'] for row in part):.0f}",
                f"{fmean(row['output_gap_bound'] / row['output_gap'] for row in part):.1f}",
            ]
        )
    head = ["λ (sum)", "train MSE", "eval MSE", "Pearson", "Pearson of the linearised run", "gap at θ", "gap of runs"]
    head += ["‖δ‖", "P1", "‖δ−δ̄‖", "P3 ÷ truth", "P2 (estimated) ÷ truth", "P3 of outputs ÷ truth"]
    names = [f"{strength:g}" for strength in result["settings"]["strengths"]]
    part = result | {"runs": runs}
    series = [
        Series(label, list(range(len(names))), by_strength(part, key))
        for label, key in (("‖δ−δ̄‖, truth", "gap"), ("P3", "gap_bound"), ("P2, estimated", "p2"), ("‖δ‖", "distance"))
    ]
    image = write_picture(
        "descent-bounds",
        picture("Distance from the linearised run", Axis("λ, sum convention", names=names), Axis("", True), series),
    )
    first = runs[0]
    seeds = len({row["seed"] for row in runs})
    return [
        "## Strength of the proximal term: gradient descent and squared loss",
        "",
        *paragraph(
            f"Regression on human ratings of sentiment from −4 to 4 ({', '.join(tasks)}), "
            f"{counted(seeds, 'seed')}, {len(runs)} runs of {first['steps']} full-batch steps on "
            f"{data['train_samples']} texts, {data['eval_samples']} evaluation texts. The head is the ridge "
            f"regression on the frozen features and stays (Pearson {mean(runs, 'metric_before'):.3f} before training: "
            "with so few texts the adapters hardly move it, so what λ costs shows in the training error); θ are the "
            "adapters alone; the loss is the paper's sum, so λ is the paper's λ. *Gap at θ* is ‖f−f̄‖/‖f−f0‖ on "
            "evaluation texts at the trained θ; *gap of runs* the same against the linearised model trained by the "
            "same steps. P1 and P2 are of gradient flow for as much time, P3 of these very steps. P2 needs a "
            "Lipschitz constant of the Jacobian: ours is the largest that was met in a task's runs, which is below "
            "the supremum, so P2 is estimated. P1 and P3 need none."
        ),
        *table(head, rows),
        image,
        "",
    ]


def placement_rows(result: dict[str, Any], task: str, strength: float | None) -> list[Row]:
    """Placements of a task with predictors and outcomes, at one λ or at the most accurate one (None)."""
    rows = []
    for kernel in where(result["kernels"], task=task):
        keys = {"task": task, "placement": kernel["placement"], "seed": kernel["seed"]}
        runs = where(result["runs"], **keys)
        runs = runs if strength is None else where(runs, strength=strength)
        if not runs:
            continue
        run = max(runs, key=lambda row: (row["eval_metric"], -row["eval_loss"]))
        forecasts = [row for each in where(result["forecasts"], task=task) for row in each["runs"]]
        for found in where(forecasts, strength=run["strength"], placement=kernel["placement"]):
            rows.append(
                kernel | run | {"forecast_accuracy": found["eval_metric"], "forecast_loss": found["train_loss"]}
            )
    return rows


def compared(result: dict[str, Any]) -> list[str]:
    """Tasks whose placements were all run without the proximal term."""
    return [task for task in result["settings"]["tasks"] if choices(result, task)]


def predictor(rows: Sequence[Row], name: str, outcome: str) -> list[float]:
    """A predictor of an outcome, which for the forecast is the forecast outcome itself."""
    key = {"eval_metric": "forecast_accuracy", "train_loss": "forecast_loss"}[outcome] if name == "forecast" else name
    return [row[key] for row in rows]


def choices(result: dict[str, Any], task: str) -> list[tuple[str, float | None]]:
    """At which λ the placements of a task are compared, in words: those at which all of them were run."""
    total = len(result["settings"]["placements"])
    done = [s for s in result["settings"]["strengths"] if len(placement_rows(result, task, s)) >= total]
    fixed: list[tuple[str, float | None]] = [(f"λ = {strength:g}", strength) for strength in done]
    return [*fixed, ("best λ of each", None)] if len(done) == len(result["settings"]["strengths"]) else fixed


def placements_section(result: dict[str, Any]) -> list[str]:
    """Experiment b."""
    tasks = compared(result)
    spans = []
    for task in tasks:
        values = [row["eval_metric"] for row in placement_rows(result, task, 0)]
        spans.append(f"{100 * (max(values) - min(values)):.1f} points ({task})")
    lines = ["## Which layers and modules", ""]
    seeds = len({row["seed"] for row in result["runs"]})
    lines += [
        *paragraph(
            f"{len(result['settings']['placements'])} placements, {counted(len(tasks), 'task')}, "
            f"{counted(seeds, 'seed')}, {len(result['runs'])} runs. Spearman correlations with 95% intervals from "
            "resampling placements. The paper's claim is a negative correlation of κ with accuracy and a positive one "
            "with the training loss. With so few placements an interval that excludes 0 says much, and one that does "
            "not says little. *Best λ* is chosen by the accuracy that is then reported; λ is in the mean convention. "
            f"At λ = 0 accuracies span {' and '.join(spans)}, with a standard error of 3 points each: "
            "hardly more than noise."
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


def averaged(result: dict[str, Any]) -> list[Row]:
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


def tasks_section(result: dict[str, Any]) -> list[str]:
    """Experiment c."""
    rows = averaged(result)
    kinds = ("condition_number", "condition_number_script_sample", "condition_number_published", "trace")
    seeds = len({row["seed"] for row in result["runs"]})
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
            f"One configuration, {len(rows)} tasks, means over {counted(seeds, 'seed')}. Spearman correlations with "
            "95% intervals from resampling tasks. More classes mean a larger κ, a higher loss and a lower accuracy "
            "all by themselves, so the tasks of two classes stand alone below. Some tasks share their texts."
        ),
        *table(["predictor", "with training loss", "with accuracy"], cells),
        *table(["task", *(PREDICTORS[key] for key in kinds), "train loss", "accuracy, %"], listed),
        image,
        "",
    ]
