"""``foretune train``: the real fine-tune."""

from typing import Annotated

import typer

from foretune.cli.console import metric, out, progress_bar
from foretune.cli.options import Candidates, Directory, RunFile

EXAMPLES = "Example: foretune train run.yaml --candidate all-linear -o runs/movie"


def command(
    run: RunFile,
    output: Directory,
    candidate: Candidates = None,
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each candidate, with seeds counted up from its own.")] = 1,
    linearised: Annotated[
        bool, typer.Option("--linearised", help="Train the linearised model; results go to train/NAME-linearised.")
    ] = False,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify", help="Record a bound on the distance to the linearised run (optim: sgd), for certify."
        ),
    ] = False,
) -> None:
    """Really fine-tune candidates with peft and Trainer, and the proximal term if the file has one.

    Finished runs are kept, an interrupted one goes on from its last checkpoint. Several seeds show how much of a
    difference between candidates is chance; compare then takes their mean.
    """
    from foretune.results import writable_directory
    from foretune.task import load_task
    from foretune.train import fine_tune

    directory = writable_directory(output)
    task = load_task(run, candidate)
    for chosen in task.candidates:
        for seed in range(chosen.seed, chosen.seed + seeds):
            label = chosen.name if seeds == 1 else f"{chosen.name}, seed {seed}"
            label += ", linearised" if linearised else ""
            with progress_bar(f"training {label}") as progress:
                result, reused = fine_tune(
                    task, chosen, directory, seed=seed, linearised=linearised, certify=certify, progress=progress
                )
            final, cost = result["final"], result["cost"]
            note = "already trained" if reused else f"{cost['seconds']:.0f} s + {cost['eval_seconds']:.0f} s evaluation"
            score = metric(final["eval_metric"], final["metric_name"])
            out.print(f"{label}: {final['metric_name']} {score}, eval loss {final['eval_loss']:.3f} ({note})")
