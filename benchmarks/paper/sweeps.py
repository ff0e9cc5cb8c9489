"""The sections on the strength of the proximal term."""

from collections.abc import Callable, Sequence
from statistics import fmean

from paper.plot import Axis, Series, picture
from paper.reading import (
    by_seed,
    by_strength,
    counted,
    deviations,
    mean,
    model,
    paragraph,
    seeds,
    selective,
    spread,
    table,
    where,
    write_picture,
)
from paper.results import Result
from tables import Row

from foretune.kernel import bounds


def levels(results: Sequence[Result]) -> list[float]:
    """Every λ of some results."""
    return sorted({strength for result in results for strength in result["settings"]["strengths"]})


def side_by_side(results: Sequence[Result], columns: dict[str, Callable[[list[Row]], str]], label: str) -> list[str]:
    """A table with a row for every λ and model."""
    rows = []
    for strength in levels(results):
        for result in results:
            part = where(result["runs"], strength=strength)
            if part:
                rows.append([f"{strength:g}", labelled(result), *(column(part) for column in columns.values())])
    return table([label, "model", *columns], rows)


def labelled(result: Result) -> str:
    """The model of an experiment and its rule, if it is not the usual one."""
    return f"{model(result)}, selective" if selective(result) else model(result)


def column(key: str, form: str, scale: float = 1.0) -> Callable[[list[Row]], str]:
    """A column of means over tasks and seeds, with the standard deviation over seeds."""
    return lambda part: spread(by_seed(part, key), form, scale)


def strength_section(results: Sequence[Result]) -> list[str]:
    """Experiment a, AdamW: every model with the usual rule, then with the selective one."""
    usual = [result for result in results if not selective(result)]
    training = usual[0]["settings"]["run"]["training"]
    rate = training["learning_rate"]
    sizes = "; ".join(
        f"{model(result)}: {', '.join(result['settings']['tasks'])}, "
        f"{result['settings']['run']['data']['train_samples']} training texts in batches of "
        f"{result['settings']['run']['training']['per_device_train_batch_size']}"
        for result in usual
    )
    columns = {
        "accuracy, %": column("eval_metric", ".1f", 100),
        "eval loss": column("eval_loss", ".3f"),
        "train loss": column("train_loss", ".3f"),
        "‖δ‖ of adapters": column("distance", ".2f"),
        "‖f−f̄‖/‖f−f0‖": column("nonlinearity", ".2f"),
        "‖f−f̄‖/‖f‖": column("relative", ".2f"),
        "KL, nats": column("divergence", ".2g"),
        "same label, %": column("agreement", ".1f", 100),
        "accuracy of f̄, %": column("metric_linearised", ".1f", 100),
    }
    pictures = [gap_picture(usual), *(accuracy_picture(result) for result in usual)]
    return [
        "## Strength of the proximal term: AdamW and cross-entropy",
        "",
        *paragraph(
            "f is the fine-tuned network, f̄ its exact linearisation at the same θ, and f0 the network before "
            "training. Numbers are means over tasks, ± the standard deviation of that mean over seeds. Bars in the "
            "pictures are standard deviations over the seeds of one task. λ is that of the mean loss, which `Trainer` "
            "minimises; the λ of the sum over n texts is n times as large. A step at the full learning rate goes back "
            f"by the share ηλ, which is {rate:g} λ. The proximal term pulls the adapters and not the new head, so at "
            "the largest λ little more than the head is trained."
        ),
        *paragraph(f"{sizes}; {training['num_train_epochs']} epochs at a learning rate of {rate:g}."),
        *side_by_side(results, columns, "λ (mean)"),
        *rules(results, usual),
        " ".join(pictures),
        "",
    ]


def rules(results: Sequence[Result], usual: Sequence[Result]) -> list[str]:
    """What the selective rule changes, on the same tasks, seeds and λ."""
    lines = []
    for result in filter(selective, results):
        other = next(each for each in usual if model(each) == model(result))
        parts = []
        for strength in levels([result]):
            pairs = [
                [where(each["runs"], strength=strength, seed=seed) for each in (other, result)]
                for seed in seeds(result["runs"])
            ]
            moved, gap, accuracy = (
                [mean(after, key) - mean(before, key) for before, after in pairs]
                for key in ("distance", "nonlinearity", "eval_metric")
            )
            parts.append(
                f"at λ = {strength:g} ‖δ‖ by {spread(moved, '+.2f')}, the gap ‖f−f̄‖/‖f−f0‖ by "
                f"{spread(gap, '+.2f')} and accuracy by {spread(accuracy, '+.1f', 100)} points"
            )
        lines += paragraph(
            "The selective rule (the paper's Eq. 8) leaves the term out of the steps in which it would lead uphill. "
            f"This changes, compared with the term in every step ({model(result)}, "
            f"{counted(len(seeds(result['runs'])), 'seed')}): {'; '.join(parts)}."
        )
    return lines


def gap_picture(results: Sequence[Result]) -> str:
    """The gap of every task and model against λ."""
    across = levels(results)
    series = [
        Series(
            f"{task}, {model(result)}",
            [across.index(strength) for strength in result["settings"]["strengths"]],
            by_strength(result, "nonlinearity", task),
            colour=i if result is not results[0] else None,
            bars=deviations(result, "nonlinearity", task),
        )
        for result in results
        for i, task in enumerate(result["settings"]["tasks"])
    ]
    axes = Axis("λ, mean convention", names=[f"{strength:g}" for strength in across]), Axis("‖f−f̄‖/‖f−f0‖")
    return write_picture("strength-gap", picture("Gap to the linearisation", *axes, series))


def accuracy_picture(result: Result) -> str:
    """Accuracy of a model and of its linearisation against λ."""
    names = [f"{strength:g}" for strength in result["settings"]["strengths"]]
    series = [
        Series(
            f"{task}{suffix}",
            range(len(names)),
            [100 * y for y in by_strength(result, key, task)],
            colour=i if suffix else None,
            bars=[100 * y for y in deviations(result, key, task)],
        )
        for key, suffix in (("eval_metric", ""), ("metric_linearised", ", f̄"))
        for i, task in enumerate(result["settings"]["tasks"])
    ]
    title = f"Accuracy of f, and of f̄ at the same θ: {model(result)}"
    axes = Axis("λ, mean convention", names=names), Axis("%")
    return write_picture(f"strength-accuracy-{slug(result)}", picture(title, *axes, series))


def slug(result: Result) -> str:
    """The model of an experiment, for file names."""
    return str(result["settings"]["run"]["model"]["package"])


def p2(row: Row, smoothness: float) -> bounds.LinearisationGap:
    """P2 of a run, from a Lipschitz constant that was only sampled."""
    t = row["rate"] * row["steps"]
    radius = bounds.distance(row["rho0"], row["strength"], t)
    norm = bounds.Bound(row["jacobian_norm"], certified=True)
    beta = bounds.Bound(smoothness, certified=False)
    return bounds.linearisation_gap(
        row["rho0"], row["strength"], t, distance=radius, jacobian_norm=norm, smoothness=beta
    )


def with_bounds(result: Result) -> list[Row]:
    """Runs of gradient descent with P1 and P2 beside the truth."""
    rows = []
    for row in result["runs"]:
        same = where(result["runs"], task=row["task"], seed=row["seed"])
        gap = p2(row, max(each["smoothness"] for each in same))
        reach = bounds.distance(row["rho0"], row["strength"], row["rate"] * row["steps"]).value
        rows.append(row | {"p1": reach, "p2": gap.parameters.value, "p2_outputs": gap.outputs.value})
    return rows


def ratio(bound: str, truth: str, form: str) -> Callable[[list[Row]], str]:
    """A column of how many times the truth a bound is."""
    return lambda part: f"{fmean(row[bound] / row[truth] for row in part):{form}}"


def descent_section(results: Sequence[Result]) -> list[str]:
    """Experiment a, gradient descent."""
    results = [result | {"runs": with_bounds(result)} for result in results]
    columns = {
        "train MSE": column("train_loss", ".3f"),
        "eval MSE": column("eval_loss", ".2f"),
        "Pearson's r": column("eval_metric", ".3f"),
        "r of the linearised run": column("metric_linearised_run", ".3f"),
        "gap at θ": column("nonlinearity", ".2f"),
        "gap of runs": column("nonlinearity_run", ".2f"),
        "‖δ‖": column("distance", ".2f"),
        "P1": column("p1", ".2f"),
        "‖δ−δ̄‖": column("gap", ".3f"),
        "P3 ÷ truth": ratio("gap_bound", "gap", ".2f"),
        "P2 (estimated) ÷ truth": ratio("p2", "gap", ".0f"),
        "P3 of outputs ÷ truth": ratio("output_gap_bound", "output_gap", ".1f"),
    }
    sizes = "; ".join(
        f"{model(result)}: {', '.join(result['settings']['tasks'])}, {counted(len(seeds(result['runs'])), 'seed')}, "
        f"{len(result['runs'])} runs of {result['runs'][0]['steps']} full-batch steps on "
        f"{result['settings']['run']['data']['train_samples']} texts, Pearson's r "
        f"{spread(by_seed(result['runs'], 'metric_before'), '.3f')} before training, ridge of the head "
        f"{result['settings']['descent'].get('ridge') or 'chosen by leave-one-out'}"
        for result in results
    )
    return [
        "## Strength of the proximal term: gradient descent and squared loss",
        "",
        *paragraph(
            "Here the theory can be compared with real runs. The task is regression on human ratings of sentiment from "
            "−4 to 4. The head is the ridge regression on the [frozen features](glossary.md#frozen-features) and stays "
            "as it is, so θ are the adapters alone. The loss is the paper's sum, so λ is the paper's λ. *Gap at θ* is "
            "‖f−f̄‖/‖f−f0‖ on evaluation texts at the trained θ. *Gap of runs* is the same against the linearised "
            "model that took the same steps."
        ),
        *paragraph(
            "P1 and P2 are bounds for gradient flow over the same time, and P3 is a bound for these very steps. P2 "
            "needs a Lipschitz constant of the Jacobian. The largest one that was seen in a task's runs is used, which "
            "is below the supremum, so P2 is estimated. P1 and P3 need no such constant."
        ),
        *paragraph(f"{sizes}."),
        *side_by_side(results, columns, "λ (sum)"),
        " ".join(map(bounds_picture, results)),
        "",
    ]


def bounds_picture(result: Result) -> str:
    """The distance from the linearised run, its bounds, and the distance from the start, against λ."""
    names = [f"{strength:g}" for strength in result["settings"]["strengths"]]
    series = [
        Series(label, range(len(names)), by_strength(result, key))
        for label, key in (("‖δ−δ̄‖, truth", "gap"), ("P3", "gap_bound"), ("P2, estimated", "p2"), ("‖δ‖", "distance"))
    ]
    title = f"Distance from the linearised run: {model(result)}"
    axes = Axis("λ, sum convention", names=names), Axis("", True)
    return write_picture(f"descent-bounds-{slug(result)}", picture(title, *axes, series))
