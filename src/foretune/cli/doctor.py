"""``foretune doctor``: check a run file before anything expensive starts."""

from foretune.cli.console import about_input, duration, number, out, say, table
from foretune.cli.options import RunFile

EXAMPLES = ("foretune doctor run.yaml",)


def command(run: RunFile) -> None:
    """Check data, model and candidates, and estimate memory and time, without training.

    It builds optimiser, schedule and Trainer of every candidate. Every file that doctor accepts, forecast accepts too.
    """
    from foretune.forecast.doctor import diagnose

    with out.status("checking the file, and timing a few batches"):
        diagnosis = diagnose(run)
    say(
        f"model: {diagnosis.model_class}, {diagnosis.parameters:,} parameters, {diagnosis.dtype}, "
        f"{diagnosis.attention} attention, on {diagnosis.device}; trained in full: "
        f"{', '.join(diagnosis.heads) or 'nothing'}"
    )
    title = f"data, cut at {diagnosis.max_length} tokens"
    data = table(title, "split", "rows", "tokens, mean", "longest", "cut")
    splits = {"train": diagnosis.train, "eval": diagnosis.eval}
    for name, split in splits.items():
        cells = (f"{split.tokens_mean:.1f}", f"{split.tokens_max}", f"{100 * split.truncated:.1f}%")
        data.add_row(name, f"{split.rows:,}", *cells)
    out.print(data)
    for name, split in splits.items():
        classes = ", ".join(f"{label} {count}" for label, count in (split.class_counts or {}).items())
        say(f"{name} labels: {classes or 'numbers'}")
    title = "candidates (times and sizes are estimated)"
    costs = table(title, "candidate", "layers", "parameters", "steps", "training", "memory", "tangents ≤")
    for candidate in diagnosis.candidates:
        costs.add_row(
            candidate.name,
            number(candidate.num_modules),
            number(candidate.trainable_parameters),
            number(candidate.steps),
            duration(candidate.estimated_train_seconds),
            f"{candidate.estimated_train_bytes / 2**20:,.0f} MiB",
            f"{candidate.estimated_cache_bytes / 2**20:,.0f} MiB",
        )
    out.print(costs)
    for candidate in diagnosis.candidates:
        say(f"{candidate.name} adapts {', '.join(candidate.modules)}")
    about_input(diagnosis.warnings, diagnosis.left_out)
    say(f"next: foretune forecast {run} -o DIR")
