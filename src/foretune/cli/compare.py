"""``foretune compare``: forecast against truth."""

from typing import Any

from foretune.cli.console import metric, number, out, table
from foretune.cli.options import RunDirectory

EXAMPLES = "Example: foretune compare runs/movie"


def command(directory: RunDirectory) -> None:
    """Put forecast and truth side by side for the candidates that were trained; writes comparison.json."""
    from foretune.forecast.compare import compare

    show(compare(directory))


def show(comparison: dict[str, Any]) -> None:
    """Print a comparison as tables."""
    name = comparison["metric_name"]
    truth = table("forecast against truth", "candidate", f"forecast {name}", "true", "error", "forecast loss", "true")
    for row in comparison["candidates"]:
        predicted, true = row["predicted"], row["true"]
        truth.add_row(
            row["name"],
            metric(predicted["eval_metric"], name),
            metric(true["eval_metric"], name),
            f"{100 * row['error']['eval_metric']:+.1f}" if name == "accuracy" else number(row["error"]["eval_metric"]),
            number(predicted["eval_loss"]),
            number(true["eval_loss"]),
        )
    out.print(truth)
    figures = comparison["summary"]
    ranks = table("who ranks the trained candidates best", "ranker", "Spearman", "Kendall", "regret")
    for ranker, values in {"forecast": figures, **comparison["rankers"]}.items():
        ranks.add_row(ranker, *(number(values[key]) for key in ("spearman", "kendall")), metric(values["regret"], name))
    out.print(ranks)
    error = metric(figures["mean_absolute_error"], name)
    share, ratio = number(figures["share_within_3_points"]), number(figures["cost_ratio"])
    out.print(f"mean absolute error {error}, within 3 points: {share}, forecast / training seconds: {ratio}")
    if figures["noise_floor"] is not None:
        out.print(f"two seeds of the same candidate differ by {metric(figures['noise_floor'], name)} on average")
