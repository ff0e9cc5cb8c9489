"""How true forecasts are with Hugging Face's default head, on four tasks that no correction was learnt from.

    python benchmarks/truth/held_out.py [--seeds 0] [-o runs/held-out]

The model is MiniLM with the head that ``AutoModelForSequenceClassification`` gives it: BERT's pooler and a new
classifier. Each task has 384 training texts, batches of 16, 6 epochs and 12 candidates: LoRA at a learning rate of 2e-3
and around it. Tasks and candidates were chosen before any of them was run. Finished runs and forecasts are kept. Writes
``benchmarks/results/held_out.json``.
"""

import argparse
import shutil
import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from common import save
from truth.grid import Setting, prepared

from foretune.cli.console import progress_bar
from foretune.forecast.compare import compare
from foretune.forecast.run import forecast_run
from foretune.task import load_task
from foretune.train import fine_tune

CANDIDATES = (
    *("qv", "qv-low-rate", "qv-high-rate", "qv-r2", "qv-r32-rslora", "qv-bottom", "qv-top"),
    *("mlp", "all-linear", "all-linear-low-rate", "all-linear-high-rate", "query"),
)
DEFAULT_HEAD: dict[str, Any] = {
    "train": 384,
    "epochs": 6,
    "rate": 2e-3,
    "curve": False,
    "pooling": "model",
    "candidates": CANDIDATES,
}
TASKS = {
    "opinions": Setting("opinions", **DEFAULT_HEAD),
    "support": Setting("support", **DEFAULT_HEAD),
    "fields": Setting("fields", **DEFAULT_HEAD | {"max_length": 48}),
    "intents": Setting("intents", **DEFAULT_HEAD),
}


def train(folder: Path, name: str, seeds: list[int]) -> None:
    """Really train every candidate of a task from every seed."""
    task = load_task(prepared(TASKS[name], folder))
    for seed in seeds:
        for candidate in task.candidates:
            result, reused = fine_tune(task, candidate, folder, seed=seed)
            if not reused:
                final, cost = result["final"], result["cost"]
                seconds = cost["seconds"] + cost["eval_seconds"]
                print(f"{name} {candidate.name} {seed}: {final['eval_metric']:.3f} {seconds:.0f} s", flush=True)


def forecast(folder: Path, name: str) -> None:
    """Forecast every candidate of a task from its own seed."""
    if not (folder / "forecast.json").exists():
        forecast_run(prepared(TASKS[name], folder), folder, bar=progress_bar)
        shutil.rmtree(folder / "tangents")


def measured(folder: Path) -> dict[str, Any]:
    """Errors, order, coverage and regret of a task's forecasts."""
    found = compare(folder)
    rows, summary = found["candidates"], found["summary"]
    return {
        "candidates": len(rows),
        "error": summary["mean_absolute_error"],
        "kendall": summary["kendall"],
        "regret": summary["regret"],
        "loss_kendall": summary["eval_loss"]["kendall"],
        "covered": sum(bool(row["within_interval"]) for row in rows),
        "runs": {
            row["name"]: [round(row[key]["eval_metric"], 4) for key in ("predicted", "true")]
            + [round(row[key]["eval_loss"], 4) for key in ("predicted", "true")]
            for row in rows
        },
    }


def main(output: Path, seeds: list[int]) -> None:
    """Train, forecast, measure and write."""
    started = time.perf_counter()
    for name in TASKS:
        train(output / name, name, seeds)
    for name in TASKS:
        forecast(output / name, name)
    tasks = {name: measured(output / name) for name in TASKS}
    means = {key: fmean(task[key] for task in tasks.values()) for key in ("error", "kendall", "regret", "loss_kendall")}
    covered, runs = (sum(task[key] for task in tasks.values()) for key in ("covered", "candidates"))
    save("held_out", started, {"mean": means, "covered": covered, "candidates": runs, "tasks": tasks})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0])
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/held-out"))
    options = parser.parse_args()
    main(options.output, options.seeds)
