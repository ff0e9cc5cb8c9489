"""What forecasts cost on the benchmark's tasks, in processor time, which other work on the machine hardly changes.

    python benchmarks/truth/cost.py [TASK...] [-o runs/truth]

Of each task the pass that all candidates share, and for query-value and for all linear layers the forecast (simulation,
network at its weights, kernel's figures) and the real run with its evaluations, in turn in one process. Tasks that are
not named stay as they were measured before.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from common import RESULTS, save
from paper.reading import paragraph
from truth.grid import command_line, run_file
from truth.predictors import clock

from foretune.forecast.forecast import forecast
from foretune.results import read_json
from foretune.tangents import Tangents, collect
from foretune.task import Candidate, Task, load_task
from foretune.train import fine_tune

COSTS = RESULTS / "cost.json"
CANDIDATES = ("qv", "all-linear")
SHARERS = 16  # candidates of a task, which share its pass
TASKS = ("movie", "amazon", "order", "reuters", "newsgroups")


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of all threads."""
    began = clock()
    work()
    return clock() - began


def train(task: Task, candidate: Candidate) -> None:
    """The real fine-tune, as ``foretune train`` makes it."""
    with tempfile.TemporaryDirectory() as scratch:
        fine_tune(task, candidate, Path(scratch), seed=candidate.seed)


def measure(task: Task) -> dict[str, Any]:
    """Processor seconds of the pass, and of the forecast and the real run of each candidate."""
    found: list[Tangents] = []
    with tempfile.TemporaryDirectory() as scratch:
        shared = cpu_seconds(lambda: found.append(collect(task, "all-linear", directory=Path(scratch))))
        (tangents,) = found
        candidates = {}
        for candidate in task.candidates:
            forecast(tangents, task, [candidate])  # reads the rows from disk once
            candidates[candidate.name] = {
                "forecast": cpu_seconds(lambda c=candidate: forecast(tangents, task, [c])),  # type: ignore[misc]
                "train": cpu_seconds(lambda c=candidate: train(task, c)),  # type: ignore[misc]
            }
    return {"pass": shared, "directions": tangents.num_directions, "candidates": candidates}


def section(tasks: list[dict[str, Any]]) -> list[str]:
    """Of ``docs/truth.md``: what was measured, and how many candidates of the gathered tasks were begun."""
    costs = read_json(COSTS, "run benchmarks/truth/cost.py")["tasks"]
    runs = [each for task in tasks for found in task["simulated"].values() for each in found.values()]
    begun = sum(each.get("followed") is not None for each in runs)
    lines = [
        "## What it costs",
        "",
        *paragraph(
            "Processor time, as a part of that of the real run of the same candidate with its evaluations (`python "
            f"benchmarks/truth/cost.py`). One pass serves all candidates: in all is a forecast and a {SHARERS}th of "
            f"the pass. Beginnings come on top: {begun} of {len(runs)} candidates here, each with about a fifth of its "
            "run (`python benchmarks/forecast.py`)."
        ),
        "| task | directions | pass, in real runs | query-value | in all | all linear layers | in all |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, found in costs.items():
        cells = [name, str(found["directions"])]
        trained = [each["train"] for each in found["candidates"].values()]
        cells.append(f"{found['pass'] / np.mean(trained):.2f}")
        for each in found["candidates"].values():
            whole = each["forecast"] + found["pass"] / SHARERS
            cells += [f"{each['forecast'] / each['train']:.3f}", f"{whole / each['train']:.3f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def main(names: list[str], output: Path) -> None:
    """Measure the tasks and write what was found after each."""
    began = time.perf_counter()
    costs = read_json(COSTS, "run benchmarks/truth/cost.py")["tasks"] if COSTS.exists() else {}
    for name in names:
        costs[name] = measure(load_task(run_file(name, output / name), list(CANDIDATES)))
        save(COSTS.stem, began, {"tasks": {each: costs[each] for each in TASKS if each in costs}})


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.set_defaults(tasks=list(TASKS))
    options = parser.parse_args()
    main(options.tasks, options.output)
