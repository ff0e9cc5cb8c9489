"""What forecasts cost on the benchmark's tasks, in processor time.

    python benchmarks/truth/cost.py [TASK...] [--few | --trained-before] [-o runs/truth]

Measures three parts of every task, one after the other in one process: the pass over the model that all candidates
share, the forecasts of all candidates (simulations, the network at their weights, the kernels' figures), and all real
runs with their evaluations. All sixteen candidates are forecast, also of models of which the benchmark trains fewer.
With ``--few`` two candidates are really trained and stand for all. With ``--trained-before`` none is, and real runs
stay as they were measured before. Tasks that are not named stay as they were measured before, too.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

import numpy as np
from common import RESULTS, save
from paper.reading import paragraph, table
from truth.calibrate import known_of
from truth.grid import EVAL_SAMPLES, command_line, prepared
from truth.grid import TASKS as SETTINGS
from truth.predictors import clock

from foretune.forecast.calibration import gains_little
from foretune.forecast.forecast import forecast
from foretune.results import read_json
from foretune.tangents import Tangents, collect
from foretune.task import Candidate, Task, load_task
from foretune.train import fine_tune

COSTS = RESULTS / "cost.json"
MORE = 24  # candidates of a larger grid that would share the pass
ALONE = ("qv", "all-linear")  # candidates that are also forecast alone
MINILM = (
    *("movie", "tweets", "amazon", "editorials", "subjectivity", "newsgroups", "order", "questions", "reuters"),
    *("fresh", "party", "pooler"),
)
TASKS = (*MINILM, "movie-mpnet", "movie-smollm2")


def whole_grid(name: str, output: Path) -> Task:
    """A task with all candidates of its grid, also those that the benchmark leaves out."""
    setting = SETTINGS[name]
    folder = output / (f"{name}-all" if setting.candidates else name)
    return load_task(prepared(replace(setting, candidates=()), folder))


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor time of some work, over all threads."""
    began = clock()
    work()
    return clock() - began


def train(task: Task, candidate: Candidate) -> None:
    """The real fine-tune, as ``foretune train`` makes it."""
    with tempfile.TemporaryDirectory() as scratch:
        fine_tune(task, candidate, Path(scratch), seed=candidate.seed)


def measure(task: Task, few: bool, trained: dict[str, float]) -> dict[str, Any]:
    """Processor seconds of the pass, of all forecasts together and, unless they are given, of the real runs."""
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
    """What a forecast costs of what a real run costs, without and with its part of the pass: means over candidates."""
    run, each = np.mean(list(found["trained"].values())), found["forecasts"] / found["candidates"]
    return float(each / run), float((each + found["pass"] / found["candidates"]) / run)


class Cost(NamedTuple):
    """What a forecast costs on average over the tasks of MiniLM, as a part of the real run.

    Attributes:
        alone: Without the pass over the model that all candidates share.
        whole: With its part of that pass.
        shared: With its part if ``MORE`` candidates share the pass.
    """

    alone: float
    whole: float
    shared: float

    @classmethod
    def of(cls, costs: dict[str, Any]) -> "Cost":
        """The means of what was measured."""
        alone, whole = np.mean([parts_of_a_run(costs[name]) for name in MINILM if name in costs], 0)
        return cls(alone, whole, alone + (whole - alone) * costs[MINILM[0]]["candidates"] / MORE)


def measured() -> dict[str, Any]:
    """What was measured of every task."""
    tasks: dict[str, Any] = read_json(COSTS, "run benchmarks/truth/cost.py")["tasks"]
    return tasks


def section(tasks: list[dict[str, Any]]) -> list[str]:
    """Of ``docs/truth.md``: what was measured, and how many candidates of the gathered tasks were begun."""
    costs = measured()
    runs = [known_of(each, task) for task in tasks for found in task["simulated"].values() for each in found.values()]
    begun = sum(each.followed is not None and not gains_little(each.gain) for each in runs)
    mean = Cost.of(costs)
    rows = []
    for name, found in costs.items():
        trained = found["trained"]
        cells = [name, *(str(found[key]) for key in ("train", "epochs", "candidates")), str(len(trained))]
        cells += [str(found["directions"]), f"{found['pass'] / np.mean(list(trained.values())):.2f}"]
        cells += [f"{found['alone'][each] / trained[each]:.3f}" for each in ALONE]
        rows.append([*cells, *(f"**{part:.3f}**" for part in parts_of_a_run(found))])
    head = ["task", "training texts", "epochs", "candidates", "really trained", "directions", "pass, in real runs"]
    return [
        "## What it costs",
        "",
        *paragraph(
            f"On average over the tasks of MiniLM a forecast costs {mean.alone:.3f} of the real run of the same "
            f"candidate, and {mean.whole:.3f} with its part of the pass over the model that all candidates share. If "
            f"{MORE} candidates share the pass it is {mean.shared:.3f}. Costs are processor time, and real runs "
            "include their evaluations."
        ),
        *paragraph(
            f"The pass looks once at every text, {EVAL_SAMPLES} evaluation texts among them, and goes back once for "
            "each direction of the head's features ([tangents](glossary.md#tangents)). So little training and many "
            "directions, which come with many classes, make it dear. Beginnings of runs that may collapse come on "
            f"top: {begun} of {len(runs)} forecasts needed one, at about a fifth of the run (`python "
            "benchmarks/forecast.py`)."
        ),
        *table([*head, "query and value", "all linear layers", "a forecast", "with its part of the pass"], rows),
        *paragraph(
            "*Query and value* and *all linear layers* are forecasts of one candidate alone, without the pass. *A "
            "forecast* is the mean over all candidates, which are simulated together. `python "
            "benchmarks/truth/cost.py` measures this table."
        ),
    ]


def main(names: list[str], output: Path, few: bool, trained_before: bool) -> None:
    """Measure the tasks, and write the result after each of them."""
    began = time.perf_counter()
    for name in names:
        known = measured() if COSTS.exists() else {}
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
