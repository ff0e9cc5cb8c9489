"""``foretune forecast``: forecast every candidate from one pass over the model."""

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from foretune.cli.console import (
    about_input,
    count,
    difference,
    metric,
    note,
    number,
    out,
    progress_bar,
    say,
    table,
    verbatim,
    warn,
)
from foretune.cli.options import Candidates, Details, Directory, RunFile, Sample

EXAMPLES = (
    "foretune forecast run.yaml -o runs/movie",
    "foretune forecast run.yaml -c base -c all-linear -o runs/movie      only two candidates",
    "foretune forecast run.yaml --sample 1000 -o runs/movie              for large training data",
)


def command(
    run: RunFile,
    output: Directory,
    candidate: Candidates = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of seeds to simulate and average. A new head needs a pass per seed.")
    ] = 1,
    refreshes: Annotated[
        int,
        typer.Option(
            min=0, help="Number of extra passes over the model during a simulated run: more accurate, but slower."
        ),
    ] = 0,
    sample: Sample = None,
    begin: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="If a candidate may collapse, train this share of its real run to see whether it does. 0: train none.",
        ),
    ] = 0.375,
    details: Details = False,
) -> None:
    """Predict the training curve and the final metric of every candidate, and write forecast.json, best first.

    One pass over the model serves all candidates. Its result is kept in the run directory, so a second forecast of the
    same layers is faster. If a candidate may collapse, the first part of its real run is trained. If that shows a
    collapse, the candidate is ranked last.
    """
    from foretune.forecast.run import forecast_run

    result = forecast_run(
        run,
        output,
        names=candidate,
        seeds=seeds,
        refreshes=refreshes,
        sample=sample,
        begin=begin,
        bar=progress_bar,
        notify=note,
    )
    show(result, details=details)
    what_next(result, run, output)


def show_task(result: dict[str, Any], *, details: bool) -> None:
    """Print the task of a forecast, its warnings, and with details the cost of the tangents."""
    task, collected = result["task"], result["collect"]
    is_sampled = collected["train_examples"] < task["train_examples"]
    sample = f" ({collected['train_examples']:,} of them stand for all)" if is_sampled else ""
    say(
        f"{Path(task['model']).name} on {task['name']}: {task['train_examples']:,} training examples{sample}, "
        f"{task['eval_examples']:,} for evaluation"
    )
    about_input(result.get("warnings") or [], result.get("left_out") or [])
    if not details:
        return
    source = "reused from an earlier run, took" if collected["reused"] else "collected in"
    say(
        f"tangents of {collected['modules']} layers along {collected['directions']} directions: {source} "
        f"{collected['seconds']:.1f} s, {collected['bytes'] / 2**20:,.0f} MiB"
    )
    say(f"frozen features predict the labels with a correlation of {task['frozen']:.2f}")


def outcome(predicted: dict[str, Any], parameters: int, name: str) -> list[str]:
    """Return the table cells of a candidate: metric, half of its 90% interval, loss and trainable parameters."""
    from foretune.forecast.compare import Z_90

    std = predicted["eval_metric_std"]
    half = None if std is None else Z_90 * std
    interval = "–" if half is None else f"±{100 * half:.1f}" if name == "accuracy" else f"±{half:.3f}"
    return [metric(predicted["eval_metric"], name), interval, number(predicted["eval_loss"]), count(parameters)]


def show(result: dict[str, Any], *, details: bool = False) -> None:
    """Print a forecast as a table, and its warnings."""
    show_task(result, details=details)
    name = result["task"]["metric_name"]
    more = ("κ", "trace", "gap") if details else ()
    ranking = table("forecast, best first", "candidate", name, "90%", "loss", "params", *more)
    for row in result["candidates"]:
        kernel = row["kernel"]
        figures = (number(kernel["condition_number"]), number(kernel["trace"]), f"{row['linearity_gap']:.2f}")
        cells = outcome(row["predicted"], row["cost"]["trainable_parameters"], name)
        ranking.add_row(row["name"], *cells, *(figures if details else ()))
    out.print(ranking)
    if details:
        _show_bounds(result["candidates"][0])
    _show_warnings(result["candidates"], details=details)


def _show_bounds(first: dict[str, Any]) -> None:
    """Explain the kernel's figures, and print the bounds on the training risk that follow from them."""
    say(
        "κ: condition number of the tangent kernel. It ignores labels and scale, and does not rank candidates. "
        "gap: the distance of the network from its tangents at the simulated weights, divided by how far it moved."
    )
    risks = {name: number(value) for name, value in first["kernel"]["risk_bounds"].items()}
    say(
        f"Squared-loss risk of {first['name']}, linearised (½‖f − y‖² per training example): {risks['initial']} at the "
        f"start; at most {risks['upper']} after {risks['steps']} steps of gradient descent at its best rate; "
        f"{risks['ridge']} by ridge regression. This is no bound on the real run, which has its own loss and optimiser."
    )


def _show_warnings(candidates: list[dict[str, Any]], *, details: bool) -> None:
    """Print the warnings, the worst first: one line per kind, or with details every warning with its numbers."""
    from foretune.forecast.advice import HEADLINES

    for kind, headline in HEADLINES.items():
        warned = [
            (row["name"], text)
            for row in candidates
            for text, its_kind in zip(row["warnings"], row["warning_kinds"], strict=True)
            if its_kind == kind
        ]
        if warned and not details:
            names = ", ".join(name for name, _ in warned[:3])
            names += f" and {len(warned) - 3} more" if len(warned) > 3 else ""
            warn(f"{names}: {headline}")
        for name, text in warned if details else ():
            warn(f"{name}: {text}")


def what_next(result: dict[str, Any], run: Path, directory: Path) -> None:
    """Print which candidate to take, how certain that is, and what to run next."""
    show_choice(result)
    verbatim(f"next: foretune train {run} -c {result['candidates'][0]['name']} -o {directory}")
    verbatim(f"then: foretune compare {directory} and foretune report {directory}")


def show_choice(result: dict[str, Any]) -> None:
    """Print which candidate to take, how far it is ahead, and how certain that is; or that no candidate learns."""
    from foretune.forecast.calibration import gains_little
    from foretune.forecast.run import lead

    best, name = result["candidates"][0], result["task"]["metric_name"]
    expected, guess = best["predicted"]["eval_metric"], result["task"]["majority_metric"] or 0.0
    if gains_little((math.nan if expected is None else expected) - guess):
        say(
            f"\nNo candidate learns much: {best['name']} is forecast at {name} {metric(expected, name)}, and guessing "
            f"gives {metric(guess, name)}. Train longer, try higher learning rates or more layers, or let "
            "foretune recommend search for better settings."
        )
        return
    say(f"\nTake {best['name']}: {name} {metric(expected, name)}.")
    ahead = lead(result["candidates"])
    if ahead:
        close = "too close to call" if ahead.chance < 0.7 else "likely" if ahead.chance < 0.9 else "sure"
        say(
            f"It is {difference(ahead.margin, name)} ahead of {ahead.second}; the chance that it is the better one is "
            f"{ahead.chance:.0%} ({close})."
        )
