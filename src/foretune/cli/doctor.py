"""``foretune doctor``: checks before anything is spent."""

from foretune.cli.console import about_input, duration, number, out, say, table
from foretune.cli.options import RunFile

EXAMPLES = ("foretune doctor run.yaml",)


def command(run: RunFile) -> None:
    """Check data, model and candidates, and estimate memory and time, without training.

    What doctor accepts, forecast accepts: it builds optimiser, schedule and Trainer of every candidate.
    """
    from foretune.forecast.doctor import diagnose

    with out.status("checking; timing a few batches"):
        found = diagnose(run)
    say(
        f"model: {found.model_class}, {found.parameters:,} parameters, {found.dtype}, {found.attention} attention, "
        f"on {found.device}; trained in full: {', '.join(found.heads) or 'nothing'}"
    )
    title = f"data, cut at {found.max_length} tokens"
    data = table(title, "split", "rows", "tokens, mean", "longest", "cut")
    splits = {"train": found.train, "eval": found.eval}
    for name, split in splits.items():
        cells = (f"{split.tokens_mean:.1f}", f"{split.tokens_max}", f"{100 * split.truncated:.1f}%")
        data.add_row(name, f"{split.rows:,}", *cells)
    out.print(data)
    for name, split in splits.items():
        classes = ", ".join(f"{label} {count}" for label, count in (split.class_counts or {}).items())
        say(f"{name} labels: {classes or 'numbers'}")
    title = "candidates (times and sizes are estimated)"
    costs = table(title, "candidate", "layers", "parameters", "steps", "training", "memory", "tangents ≤")
    for each in found.candidates:
        costs.add_row(
            each.name,
            number(each.num_modules),
            number(each.trainable_parameters),
            number(each.steps),
            duration(each.estimated_train_seconds),
            f"{each.estimated_train_bytes / 2**20:,.0f} MiB",
            f"{each.estimated_cache_bytes / 2**20:,.0f} MiB",
        )
    out.print(costs)
    for each in found.candidates:
        say(f"{each.name} adapts {', '.join(each.modules)}")
    about_input(found.warnings, found.left_out)
    say(f"next: foretune forecast {run} -o DIR")
