"""``foretune train``: the real fine-tune."""

from foretune.cli.console import metric, out, progress_bar
from foretune.cli.options import Candidates, Directory, RunFile

EXAMPLES = "Example: foretune train run.yaml --candidate all-linear -o runs/movie"


def command(
    run: RunFile,
    output: Directory,
    candidate: Candidates = None,
) -> None:
    """Really fine-tune candidates with peft and Trainer, and the proximal term if the file has one.

    Finished candidates are kept, an interrupted one goes on from its last checkpoint.
    """
    from foretune.results import writable_directory
    from foretune.task import load_task
    from foretune.train import fine_tune

    directory = writable_directory(output)
    task = load_task(run, candidate)
    for chosen in task.candidates:
        with progress_bar(f"training {chosen.name}") as progress:
            result, reused = fine_tune(task, chosen, directory, progress=progress)
        final, cost = result["final"], result["cost"]
        note = "already trained" if reused else f"{cost['seconds']:.0f} s + {cost['eval_seconds']:.0f} s evaluation"
        score = metric(final["eval_metric"], final["metric_name"])
        out.print(f"{chosen.name}: {final['metric_name']} {score}, eval loss {final['eval_loss']:.3f} ({note})")
