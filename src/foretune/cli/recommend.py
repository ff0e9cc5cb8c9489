"""``foretune recommend``: search for the best placement, rank and learning rate of adapters."""

from typing import Any

from foretune.cli.console import difference, note, out, progress_bar, say, table, verbatim, warn
from foretune.cli.forecast import outcome, show_task
from foretune.cli.options import Details, Directory, RunFile, Sample

EXAMPLES = ("foretune recommend run.yaml -o runs/movie",)
SHOWN = 10  # how many of the searched fine-tunes are listed


def command(run: RunFile, output: Directory, sample: Sample = None, details: Details = False) -> None:
    """Search for better layers, rank and learning rate than those of run.yaml, and write a peft config.

    The search makes about 45 forecasts from one pass over the model. It varies learning rates, then kinds of layers
    (attention, MLP, all linear), halves of the layers, and ranks. Nothing is trained. Fine-tunes that may collapse are
    not recommended. The candidates of the file compete.
    """
    from foretune.forecast.recommend import ADAPTER, RUN, recommend_run

    result = recommend_run(run, output, sample=sample, bar=progress_bar, notify=note)
    show(result, details=details)
    name = result["recommended"]["name"]
    verbatim(f"wrote {output / ADAPTER} for peft, {output / RUN} and {output / 'recommendation.json'}")
    verbatim(f"next: foretune train {output / RUN} -c {name} -o {output}")


def show(result: dict[str, Any], *, details: bool = False) -> None:
    """Print the recommended fine-tune, the best others, the one of the file, and a lighter one."""
    show_task(result, details=details)
    name = result["task"]["metric_name"]
    roles = {entry["name"]: role for role in ("base", "lighter", "recommended") if (entry := result[role])}
    ranking = table(f"best of {len(result['searched'])} fine-tunes", "candidate", name, "90%", "loss", "params", "")
    for place, row in enumerate(result["searched"]):
        notes = [roles.get(row["name"], ""), "may collapse" if row["may_collapse"] else ""]
        if place < SHOWN or row["name"] in roles:
            ranking.add_row(
                row["name"],
                *outcome(row, row["trainable_parameters"], name),
                ", ".join(filter(None, notes)),
            )
    out.print(ranking)
    first, base = (result[role] for role in ("recommended", "base"))
    if first["name"] == base["name"]:
        say(f"Nothing is better than {first['name']}, which the file describes.")
    else:
        better = first["predicted"]["eval_metric"] - base["predicted"]["eval_metric"]
        say(
            f"{first['name']} is forecast {difference(better, name)} above {base['name']}, which the file describes. "
            f"The best of {len(result['searched'])} forecasts is more often too high than too low: train it to be sure."
        )
    for warning in first["warnings"]:
        warn(f"{first['name']}: {warning}")
