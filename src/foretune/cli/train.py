"""``foretune train``: fine-tune candidates for real."""

from typing import Annotated

import typer

from foretune.cli.console import about_input, metric, note, progress_bar, say
from foretune.cli.options import Candidates, Directory, RunFile

EXAMPLES = (
    "foretune train run.yaml -c all-linear -o runs/movie",
    "foretune train run.yaml -c all-linear --seeds 3 -o runs/movie       three seeds",
)


def command(
    run: RunFile,
    output: Directory,
    candidate: Candidates = None,
    seeds: Annotated[
        int, typer.Option(min=1, help="Number of runs per candidate; their seeds count up from the candidate's own.")
    ] = 1,
    linearised: Annotated[
        bool, typer.Option("--linearised", help="Train the linearised model; results go to train/NAME-linearised.")
    ] = False,
    certify: Annotated[
        bool,
        typer.Option(
            "--certify",
            help="Record a bound on the distance from the linearised run, for foretune certify. It needs optim: sgd.",
        ),
    ] = False,
) -> None:
    """Fine-tune candidates for real with peft and Trainer, with the proximal term if the file has one.

    Finished runs are not repeated, and an interrupted run continues from its last checkpoint. Several seeds show how
    much of a difference between candidates is chance.
    """
    from foretune.run_directory import run_directory
    from foretune.tangents import check_runs
    from foretune.task.loading import load_run
    from foretune.train import fine_tune
    from foretune.train.rehearsal import rehearse

    with run_directory(output) as directory:
        loaded = load_run(run, candidate)
        about_input(loaded.warnings)
        task = loaded.task
        check_runs(task, f"{run}: model.path")
        for chosen in task.candidates:  # check all of them before the first is trained
            rehearse(task, chosen, f"{run}: candidate {chosen.name!r}")
        for chosen in task.candidates:
            for seed in range(chosen.seed, chosen.seed + seeds):
                label = chosen.name if seeds == 1 else f"{chosen.name}, seed {seed}"
                label += ", linearised" if linearised else ""
                with progress_bar(f"training {label}") as progress:
                    result, reused = fine_tune(
                        task,
                        chosen,
                        directory,
                        seed=seed,
                        linearised=linearised,
                        certify=certify,
                        progress=progress,
                        notify=note,
                    )
                final, cost = result["final"], result["cost"]
                spent = f"{cost['seconds']:.0f} s + {cost['eval_seconds']:.0f} s evaluation"
                score = metric(final["eval_metric"], final["metric_name"])
                how = "already trained" if reused else spent
                say(f"{label}: {final['metric_name']} {score}, eval loss {final['eval_loss']:.3f} ({how})")
