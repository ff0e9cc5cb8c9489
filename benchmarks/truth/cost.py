"""What forecasts cost on the benchmark's tasks, in processor time, which other work on the machine hardly changes.

    python benchmarks/truth/cost.py [TASK...] [--few | --trained-before] [-o runs/truth]

Of each task the pass that all candidates share, the forecasts of all of them (simulations, network at their weights,
kernels' figures) and all real runs with their evaluations, one after the other in one process. Models of which the
benchmark trains fewer candidates are forecast for all sixteen, as the others are. With ``--few`` two candidates are
really trained, and stand for all; with ``--trained-before`` none, and real runs stay as they were measured before.
Tasks that are not named stay as they were measured before.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from common import RESULTS, save
from paper.reading import paragraph
from truth.calibrate import known_of
from truth.grid import EVAL_SAMPLES, command_line, prepared
from truth.grid import TASKS as SETTINGS
from truth.predictors import clock

from foretune.forecast.forecast import forecast
from foretune.results import read_json
from foretune.tangents import Tangents, collect
from foretune.task import Candidate, Task, load_task
from foretune.train import fine_tune

COSTS = RESULTS / "cost.json"
MORE = 24  # candidates that would share a pass too
ALONE = ("qv", "all-linear")  # candidates that are forecast by themselves too
MINILM = (
    *("movie", "tweets", "amazon", "editorials", "subjectivity", "newsgroups", "order", "questions", "reuters"),
    *("fresh", "party", "pooler"),
)
TASKS = (*MINILM, "movie-mpnet", "movie-smollm2")


def whole_grid(name: str, output: Path) -> Task:
    """A task with all candidates of its grid, those too that the benchmark leaves out."""
    setting = SETTINGS[name]
    folder = output / (f"{name}-all" if setting.candidates else name)
    return load_task(prepared(replace(setting, candidates=()), folder))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of all threads."""
    began = clock()
    work()
    return clock() - began


def train(task: Task, candidate: Candidate) -> None:
    """The real fine-tune, as ``foretune train`` makes it."""
    with tempfile.TemporaryDirectory() as scratch:
        fine_tune(task, candidate, Path(scratch), seed=candidate.seed)


def measure(task: Task, few: bool, trained: dict[str, float]) -> dict[str, Any]:
    """Processor seconds of the pass, of all forecasts together, and of the real runs, if they are not known."""
    found: list[Tangents] = []
    with tempfile.TemporaryDirectory() as scratch:
        shared = cpu_seconds(lambda: found.append(collect(task, "all-linear", directory=Path(scratch))))
        (tangents,) = found
        together = cpu_seconds(lambda: forecast(tangents, task, task.candidates))
        alone = {
            candidate.name: cpu_seconds(lambda c=candidate: forecast(tangents, task, [c]))  # type: ignore[misc]
            for candidate in task.candidates
            if candidate.name in ALONE
        }
    trained = trained or {
        candidate.name: cpu_seconds(lambda c=candidate: train(task, c))  # type: ignore[misc]
        for candidate in task.candidates
        if not few or candidate.name in ALONE
    }
    return {
        "candidates": len(task.candidates),
        "train": len(task.train),
        "epochs": task.candidates[0].training["num_train_epochs"],
        "pass": shared,
        "directions": tangents.num_directions,
        "forecasts": together,
        "alone": alone,
        "trained": trained,
    }


def parts_of_a_run(found: dict[str, Any]) -> tuple[float, float]:
    """What a forecast costs of what a real run does, without and with its part of the pass: means over candidates."""
    run, each = np.mean(list(found["trained"].values())), found["forecasts"] / found["candidates"]
    return float(each / run), float((each + found["pass"] / found["candidates"]) / run)


def section(tasks: list[dict[str, Any]]) -> list[str]:
    """Of ``docs/truth.md``: what was measured, and how many candidates of the gathered tasks were begun."""
    costs = read_json(COSTS, "run benchmarks/truth/cost.py")["tasks"]
    runs = [known_of(each, task) for task in tasks for found in task["simulated"].values() for each in found.values()]
    begun = sum(each.followed is not None and not each.is_foregone for each in runs)
    parts = {name: parts_of_a_run(found) for name, found in costs.items()}
    alone, whole = np.mean([parts[name] for name in MINILM if name in parts], 0)
    shared = alone + (whole - alone) * costs[MINILM[0]]["candidates"] / MORE
    lines = [
        "## What it costs",
        "",
        *paragraph(
            "Processor time, as a part of that of the real run of the same candidate with its evaluations (`python "
            "benchmarks/truth/cost.py`). A forecast: the mean of all candidates, without the pass that they share. In "
            "all: with the pass, divided by the candidates. On average over the tasks of MiniLM a forecast costs "
            f"{alone:.3f} of a run, in all {whole:.3f}, and with {MORE} candidates that share the pass "
            f"{shared:.3f}: the pass looks once at every text, {EVAL_SAMPLES} evaluation "
            "examples among them, and goes back once for each direction, so that little training and many directions "
            f"make it dear. Beginnings come on top: {begun} of {len(runs)} candidates here, each with about a fifth of "
            "its run (`python benchmarks/forecast.py`)."
        ),
        "| task | training examples | epochs | candidates | trained | directions | pass, in real runs | query-value "
        "| all linear layers | a forecast | in all |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, found in costs.items():
        trained = found["trained"]
        cells = [name, *(str(found[key]) for key in ("train", "epochs", "candidates")), str(len(trained))]
        cells += [str(found["directions"]), f"{found['pass'] / np.mean(list(trained.values())):.2f}"]
        cells += [f"{found['alone'][each] / trained[each]:.3f}" for each in ALONE]
        lines.append(f"| {' | '.join([*cells, *(f'**{part:.3f}**' for part in parts[name])])} |")
    return [*lines, ""]


def main(names: list[str], output: Path, few: bool, trained_before: bool) -> None:
    """Measure the tasks and write what was found after each."""
    began = time.perf_counter()
    for name in names:
        known = read_json(COSTS, "run benchmarks/truth/cost.py")["tasks"] if COSTS.exists() else {}
        trained = known[name]["trained"] if trained_before else {}
        costs = known | {name: measure(whole_grid(name, output), few, trained)}
        save(COSTS.stem, began, {"tasks": {each: costs[each] for each in TASKS if each in costs}})


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.set_defaults(tasks=list(TASKS))
    parser.add_argument("--few", action="store_true", help="really train two candidates, which stand for all")
    parser.add_argument("--trained-before", action="store_true", help="real runs stay as they were measured before")
    options = parser.parse_args()
    main(options.tasks, options.output, options.few, options.trained_before)
