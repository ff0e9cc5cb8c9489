"""``foretune doctor``: checks before anything is spent."""

from foretune.cli.console import number, out, table
from foretune.cli.options import RunFile

EXAMPLES = "Example: foretune doctor run.yaml"


def command(run: RunFile) -> None:
    """Check data, model and candidates, and estimate memory and time, without training."""
    from foretune.task import diagnose

    with out.status("checking; timing a few batches"):
        found = diagnose(run)
    out.print(
        f"model: {found.model_class}, {found.parameters:,} parameters, {found.dtype}, {found.attention} attention, "
        f"on {found.device}; trained in full: {', '.join(found.heads) or 'nothing'}",
        highlight=False,
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
        out.print(f"{name} labels: {classes or 'numbers'}", highlight=False)
    title = "candidates (times and sizes are estimated)"
    costs = table(title, "candidate", "layers", "parameters", "steps", "training", "memory", "tangents ≤")
    for each in found.candidates:
        costs.add_row(
            each.name,
            number(each.num_modules),
            number(each.trainable_parameters),
            number(each.steps),
            f"{each.estimated_train_seconds:,.0f} s",
            f"{each.estimated_train_bytes / 2**20:,.0f} MiB",
            f"{each.estimated_cache_bytes / 2**20:,.0f} MiB",
        )
    out.print(costs)
    for each in found.candidates:
        out.print(f"{each.name} adapts {', '.join(each.modules)}", highlight=False)
    for warning in found.warnings:
        out.print(f"[yellow]![/] {warning}", highlight=False)
