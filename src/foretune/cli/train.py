"""``foretune train``: fine-tune candidates for real."""

from typing import TYPE_CHECKING, Annotated

import typer

from foretune.cli.console import about_input, metric, note, progress_bar, say
from foretune.cli.options import Candidates, Directory, RunFile

if TYPE_CHECKING:
    from foretune.task import Candidate, Task

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

    Candidates that cannot be trained are left out by name, unless -c asks for them. Finished runs are not repeated, and
    an interrupted run continues from its last checkpoint. Several seeds show how much of a difference between
    candidates is chance.
    """
    from foretune.run_directory import run_directory
    from foretune.tangents import check_runs
    from foretune.task.loading import load_run
    from foretune.train import fine_tune

    with run_directory(output) as directory:
        loaded = load_run(run, candidate)
        about_input(loaded.warnings)
        task = loaded.task
        check_runs(task, f"{run}: model.path")
        for chosen in _trainable(task, str(run), linearised=linearised, named=bool(candidate)):
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


def _trainable(task: "Task", source: str, *, linearised: bool, named: bool) -> list["Candidate"]:
    """Check all candidates before the first one is trained, and print those that are left out.

    If none of them can be trained, or one that the user named cannot, its ``InputError`` is raised.

    Args:
        task: The task.
        source: Name of the run file in messages.
        linearised: Whether the linearised model is to be trained.
        named: Whether the user named the candidates; then none of them is left out.

    Returns:
        The candidates that can be trained.
    """
    from foretune.errors import InputError, left_out
    from foretune.train.finetune import check_linearised
    from foretune.train.rehearsal import rehearse

    problems: dict[str, InputError] = {}
    for candidate in task.candidates:
        where = f"{source}: candidate {candidate.name!r}"
        try:
            rehearse(task, candidate, where)
            if linearised:
                check_linearised(candidate, f"{where}: training")
        except InputError as error:
            problems[candidate.name] = error
    if problems and (named or len(problems) == len(task.candidates)):
        first, *_ = problems.values()
        raise first
    about_input([], left_out(problems))
    return [candidate for candidate in task.candidates if candidate.name not in problems]
