"""``foretune recommend``: where to put adapters, how large, how fast."""

from typing import Any

from foretune.cli.console import out, progress_bar, table
from foretune.cli.forecast import outcome, show_task
from foretune.cli.options import Directory, RunFile, Sample

EXAMPLES = "Example: foretune recommend run.yaml -o runs/movie"
SHOWN = 10  # of all that was looked at


def command(run: RunFile, output: Directory, sample: Sample = None) -> None:
    """Search for the best place, rank and learning rate around run.yaml; writes a peft config, ready to train.

    Learning rates come first, then the file's target modules, attention, MLPs and all linear layers, in all layers and
    in each half, then ranks, all from one pass over the model. Nothing is trained, and what may collapse is not
    recommended. The file's candidates compete.
    """
    from foretune.forecast.recommend import ADAPTER, RUN, recommend_run

    found = recommend_run(run, output, sample=sample, bar=progress_bar)
    show(found)
    name = found["recommended"]["name"]
    out.print(
        f"wrote {output / ADAPTER} for peft, {output / RUN} and {output / 'recommendation.json'}\n"
        f"next: foretune train {output / RUN} -c {name} -o {output}",
        highlight=False,
        soft_wrap=True,
    )


def show(found: dict[str, Any]) -> None:
    """Print what is recommended, beside the best others, what the file describes and what is lighter."""
    show_task(found)
    name = found["task"]["metric_name"]
    roles = {entry["name"]: role for role in ("base", "lighter", "recommended") if (entry := found[role])}
    shown = table(f"best of {len(found['searched'])} fine-tunes", "candidate", name, "±", "loss", "params", "")
    for place, row in enumerate(found["searched"]):
        notes = [roles.get(row["name"], ""), "may collapse" if row["may_collapse"] else ""]
        if place < SHOWN or row["name"] in roles:
            shown.add_row(
                row["name"],
                *outcome(row, row["trainable_parameters"], name),
                ", ".join(filter(None, notes)),
            )
    out.print(shown)
    first, base = (found[role] for role in ("recommended", "base"))
    better = 100 * (first["predicted"]["eval_metric"] - base["predicted"]["eval_metric"])
    if first["name"] == base["name"]:
        out.print(f"Nothing is better than {first['name']}, which the file describes.", highlight=False)
    else:
        said = f"{first['name']} is forecast {better:.1f} points above {base['name']}, which the file describes."
        out.print(said, highlight=False)
    for warning in found["recommended"]["warnings"]:
        out.print(f"[yellow]![/] {found['recommended']['name']}: {warning}", highlight=False)
