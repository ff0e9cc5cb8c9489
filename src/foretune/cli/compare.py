"""``foretune compare``: compare forecasts with real runs."""

from typing import Any

from foretune.cli.console import difference, metric, number, out, say, table, warn
from foretune.cli.options import RunDirectory

EXAMPLES = ("foretune compare runs/movie",)


def command(directory: RunDirectory) -> None:
    """Compare the forecasts of trained candidates with their real runs, and write comparison.json."""
    from foretune.forecast.compare import compare

    show(compare(directory))


def show(comparison: dict[str, Any]) -> None:
    """Print a comparison as tables."""
    from foretune.forecast.compare import MIN_PAIRS
    from foretune.forecast.truths import by_reason

    name = comparison["metric_name"]
    runs = table("forecast against truth", "candidate", f"forecast {name}", "true", "error", "forecast loss", "true")
    for row in comparison["candidates"]:
        predicted, true = row["predicted"], row["true"]
        runs.add_row(
            row["name"],
            metric(predicted["eval_metric"], name),
            metric(true["eval_metric"], name),
            difference(row["error"]["eval_metric"], name, "+").removesuffix(" points"),
            number(predicted["eval_loss"]),
            number(true["eval_loss"]),
        )
    out.print(runs)
    summary = comparison["summary"]
    if summary["n"] >= MIN_PAIRS:
        _show_ranks({"forecast": summary, **comparison["rankers"]}, name)
    else:
        missing = MIN_PAIRS - summary["n"]
        say(f"train {missing} more candidate{'s' if missing > 1 else ''} to see how well the forecast ranks them")
    inside = [row["within_interval"] for row in comparison["candidates"] if row["within_interval"] is not None]
    error = difference(summary["mean_absolute_error"], name)
    say(f"mean absolute error {error}; {sum(inside)} of {len(inside)} runs lie in their 90% interval")
    if (ratio := summary["cost_ratio"]) is not None:
        say(f"after the pass over the model, a forecast took {100 * ratio:.1f}% of the time of its real run")
    if summary["noise_floor"] is not None:
        say(f"two seeds of the same candidate differ by {difference(summary['noise_floor'], name)} on average")
    for line in by_reason(comparison["skipped"]):
        warn(f"not compared: {line}")


def _show_ranks(rankers: dict[str, dict[str, Any]], name: str) -> None:
    """Print how well the forecast and simpler scores order the trained candidates."""
    ranks = table("how well each score ranks the trained candidates", "score", "Spearman", "Kendall", "regret")
    for ranker, values in rankers.items():
        order = (number(values[key]) for key in ("spearman", "kendall"))
        ranks.add_row(ranker, *order, difference(values["regret"], name))
    out.print(ranks)
