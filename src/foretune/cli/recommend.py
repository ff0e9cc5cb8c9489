"""``foretune recommend``: where to put adapters, how large, how fast."""

from typing import Any

from foretune.cli.console import difference, note, out, progress_bar, say, table, verbatim, warn
from foretune.cli.forecast import outcome, show_task
from foretune.cli.options import Details, Directory, RunFile, Sample

EXAMPLES = ("foretune recommend run.yaml -o runs/movie",)
SHOWN = 10  # of all that was searched


def command(run: RunFile, output: Directory, sample: Sample = None, details: Details = False) -> None:
    """Search for the best layers, rank and learning rate around run.yaml; writes a peft config, ready to train.

    The search takes some 45 forecasts from one pass over the model: learning rates, then attention, MLPs and all linear
    layers, halves of the layers, ranks. Nothing is trained. Fine-tunes that may collapse are not recommended, and the
    file's own candidates compete.
    """
    from foretune.forecast.recommend import ADAPTER, RUN, recommend_run

    result = recommend_run(run, output, sample=sample, bar=progress_bar, notify=note)
    show(result, details=details)
    name = result["recommended"]["name"]
    verbatim(f"wrote {output / ADAPTER} for peft, {output / RUN} and {output / 'recommendation.json'}")
    verbatim(f"next: foretune train {output / RUN} -c {name} -o {output}")


def show(found: dict[str, Any], *, details: bool = False) -> None:
    """Print what is recommended, beside the best others, what the file describes and what is lighter."""
    show_task(found, details=details)
    name = found["task"]["metric_name"]
    roles = {entry["name"]: role for role in ("base", "lighter", "recommended") if (entry := found[role])}
    shown = table(f"best of {len(found['searched'])} fine-tunes", "candidate", name, "90%", "loss", "params", "")
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
    if first["name"] == base["name"]:
        say(f"Nothing is better than {first['name']}, which the file describes.")
    else:
        better = first["predicted"]["eval_metric"] - base["predicted"]["eval_metric"]
        say(
            f"{first['name']} is forecast {difference(better, name)} above {base['name']}, which the file describes. "
            f"The best of {len(found['searched'])} forecasts is more often too good than others: train it to be sure."
        )
    for warning in first["warnings"]:
        warn(f"{first['name']}: {warning}")
