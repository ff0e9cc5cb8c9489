"""``foretune forecast``: every candidate from one pass over the model."""

from typing import Annotated, Any

import typer

from foretune.cli.console import count, metric, number, out, progress_bar, table
from foretune.cli.options import Candidates, Directory, RunFile, Sample

EXAMPLES = "Example: foretune forecast run.yaml -o runs/movie"


def command(
    run: RunFile,
    output: Directory,
    candidate: Candidates = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Simulated seeds of each candidate, averaged; one more pass for each new head.")
    ] = 1,
    refreshes: Annotated[
        int, typer.Option(min=0, help="Tangents taken again on the way through each simulated run: truer, a pass each.")
    ] = 0,
    sample: Sample = None,
    begin: Annotated[
        float,
        typer.Option(
            min=0.0,
            max=1.0,
            help="Share of the real run that is made of candidates that may collapse; 0: none.",
        ),
    ] = 0.375,
) -> None:
    """Predict every candidate's training curve and final metric; writes forecast.json, best first.

    Candidates whose steps are too large may collapse: three eighths of their real run are made to see whether they do.
    Those that do, or are not begun, are ranked last, whatever their forecast.

    The pass over the model is made once and kept, and so are beginnings: forecasting again, or other candidates on the
    same layers, reuses them.
    """
    from foretune.forecast.run import forecast_run

    found = forecast_run(
        run,
        output,
        names=candidate,
        seeds=seeds,
        refreshes=refreshes,
        sample=sample,
        begin=begin,
        bar=progress_bar,
    )
    show(found)
    out.print(f"wrote {output / 'forecast.json'}; next: foretune train {run} -c NAME -o {output}")


def show_task(result: dict[str, Any]) -> None:
    """Print what a forecast is of, and what it took."""
    task, collected = result["task"], result["collect"]
    source = "reused from an earlier run, took" if collected["reused"] else "collected in"
    sampled = collected["train_examples"] < task["train_examples"]
    stand = f", of which {collected['train_examples']} stand for all," if sampled else ""
    out.print(
        f"{task['model']} on {task['name']}: {task['train_examples']} training{stand} and {task['eval_examples']} "
        f"evaluation examples\ntangents of {collected['modules']} layers along {collected['directions']} directions: "
        f"{source} {collected['seconds']:.1f} s, {collected['bytes'] / 2**20:,.0f} MiB\n"
        f"features as they are predict labels with correlation {task['frozen']:.2f}: the rest is to be learnt"
    )


def outcome(predicted: dict[str, Any], parameters: int, name: str) -> list[str]:
    """The cells of a table that say how a candidate ends: metric, ±, loss and trainable parameters."""
    metrics = (metric(predicted[key], name) for key in ("eval_metric", "eval_metric_std"))
    return [*metrics, number(predicted["eval_loss"]), count(parameters)]


def show(result: dict[str, Any]) -> None:
    """Print a forecast as a table."""
    show_task(result)
    name = result["task"]["metric_name"]
    shown = table("forecast, best first", "candidate", name, "±", "loss", "params", "κ", "trace", "gap", "")
    for row in result["candidates"]:
        predicted, kernel, cost = row["predicted"], row["kernel"], row["cost"]
        shown.add_row(
            row["name"],
            *outcome(predicted, cost["trainable_parameters"], name),
            number(kernel["condition_number"]),
            number(kernel["trace"]),
            f"{row['linearity_gap']:.2f}",
            "!" * len(row["warnings"]),
        )
    out.print(shown)
    out.print(
        "± is the standard deviation of a real run around its forecast, as seen on other tasks. κ knows neither labels "
        "nor scale: it does not rank. gap: how far the network at the simulated weights is from its tangents."
    )
    first = result["candidates"][0]
    risks = {name: number(value) for name, value in first["kernel"]["risk_bounds"].items()}
    out.print(
        f"Squared-loss risk of {first['name']}, linearised (½‖f − y‖² per training example): {risks['initial']} at the "
        f"start; at most {risks['upper']} after {risks['steps']} steps of gradient descent at its best rate; "
        f"{risks['ridge']} by ridge regression. The real run has its own loss and optimiser: this does not bound it.",
        highlight=False,
    )
    warned: dict[str, list[str]] = {}
    for row in result["candidates"]:
        for warning in row["warnings"]:
            warned.setdefault(warning, []).append(row["name"])
    for warning, names in warned.items():
        out.print(f"[yellow]![/] {', '.join(names)}: {warning}", highlight=False)
