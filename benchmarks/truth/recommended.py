"""What ``foretune recommend`` is worth: what it recommends is really trained and compared with the best of the grid.

    python benchmarks/truth/recommended.py [TASK...] [--seeds 0 1] [-o runs/truth]

The search begins where many scripts do, with query and value at a learning rate of 1e-4. It knows nothing of the grid,
and its corrections are learnt on other tasks. Tasks that are not named stay as they were measured before.
"""

import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from unittest.mock import patch

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

import yaml
from common import RESULTS, save
from paper.reading import paragraph, table
from truth.calibrate import Weights
from truth.gather import read_tasks, truth_of
from truth.grid import command_line, run_file
from truth.ours import fit_without
from truth.units import hundredths, metric, percent

from foretune.cli.console import progress_bar
from foretune.forecast.recommend import RUN, recommend_run
from foretune.results import read_json
from foretune.task import load_task
from foretune.train import fine_tune

FOUND = RESULTS / "recommended.json"
RATE = 1e-4
ROLES = ("recommended", "lighter", "base")


def search(name: str, weights: Weights, output: Path) -> dict[str, Any]:
    """What is recommended for a task, with these corrections."""
    folder = output / name / "recommended"
    folder.mkdir(parents=True, exist_ok=True)
    content = yaml.safe_load(run_file(name, output / name).read_text(encoding="utf-8"))
    del content["candidates"]
    content["training"] |= {"learning_rate": RATE, "eval_strategy": "no"}
    for split in ("train", "eval"):
        content["data"][split] = f"../{content['data'][split]}"
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    with patch("foretune.forecast.calibration.learnt", lambda: weights):
        return recommend_run(path, folder, bar=progress_bar)


def measure(name: str, seeds: list[int], output: Path) -> dict[str, Any]:
    """The search of a task, real runs of what it recommends, and the best of the grid."""
    tasks, folder = read_tasks(), output / name / "recommended"
    (own,) = [task for task in tasks if task["name"] == name]
    found, truth = search(name, fit_without(own, tasks), output), truth_of(own)
    best = max(zip(truth.mean.tolist(), truth.candidates, strict=True))
    task, rows, seconds = load_task(folder / RUN), {}, []
    for role in ROLES:
        if (entry := found[role]) is None:
            continue
        (candidate,) = [each for each in task.candidates if each.name == entry["name"]]
        runs = [fine_tune(task, candidate, folder, seed=seed)[0] for seed in seeds]
        seconds += [run["cost"]["seconds"] + run["cost"]["eval_seconds"] for run in runs]
        predicted = entry["predicted"]
        rows[role] = {"name": candidate.name, "forecast": predicted["eval_metric"], "std": predicted["eval_metric_std"]}
        rows[role] |= {"parameters": entry["cost"]["trainable_parameters"]}
        rows[role] |= {"true": [run["final"]["eval_metric"] for run in runs]}
        print(name, role, rows[role], flush=True)
    return rows | {
        "searched": len(found["searched"]),
        "seconds": found["wall_seconds"],
        "trained_seconds": fmean(seconds),
        "grid": {"name": best[1], "true": best[0]},
    }


class Worth(NamedTuple):
    """Means over tasks: how far recommended runs are ahead of the file's own, and behind the best of the grid."""

    ahead: float
    behind: float

    @property
    def beside_best(self) -> str:
        """How far recommended runs end below the best of the grid, in words."""
        return f"{hundredths(abs(self.behind))} {'below' if self.behind > 0 else 'above'}"

    @classmethod
    def of(cls, found: dict[str, Any]) -> "Worth":
        """Of what was measured."""
        own = [_true(each) for each in found.values()]
        return cls(
            fmean(true["recommended"] - true["base"] for true in own),
            fmean(each["grid"]["true"] - true["recommended"] for each, true in zip(found.values(), own, strict=True)),
        )


def measured() -> dict[str, Any]:
    """What was measured of every task."""
    tasks: dict[str, Any] = read_json(FOUND, "run benchmarks/truth/recommended.py")["tasks"]
    return tasks


def section(tasks: list[dict[str, Any]]) -> list[str]:
    """Of ``docs/truth.md``."""
    found = measured()
    by_name = {task["name"]: task for task in tasks}
    worth = Worth.of(found)
    spent = [each["seconds"] / each["trained_seconds"] for each in found.values()]
    head = ["task", "searched", "own run", "recommended", "forecast", "true", "best of the grid", "behind", "lighter"]
    return [
        "## What is recommended",
        "",
        *paragraph(
            f"`foretune recommend` searched {len(found)} tasks, from query and value at a learning rate of 1e-4, "
            "where many scripts begin. It knew nothing of the candidates above, and its corrections were learnt on "
            "other tasks. What it recommended, and the lighter alternative that it named, were then really trained "
            "from two seeds (`python benchmarks/truth/recommended.py`)."
        ),
        *paragraph(
            f"On average, recommended runs are {hundredths(worth.ahead)} hundredths of the metric ahead of the file's "
            f"own run, and {hundredths(abs(worth.behind))} {'behind' if worth.behind > 0 else 'ahead of'} the best "
            "candidate of the grid. That candidate was chosen with hindsight, so it has the luck of its seeds. A "
            f"search took as long as {min(spent):.1f} to {max(spent):.1f} of these real runs, beside other work."
        ),
        *table(
            [*head, "its parameters", "its true metric"], [_row(by_name[name], each) for name, each in found.items()]
        ),
        *paragraph(
            "A negative number under *behind* says that the recommended run is better than the best of the grid. *Its "
            "parameters* are a share of those of the recommended run. The first version of the search failed on "
            "`beliefs`; what that run and those of `order` taught is part of the correction now, so these two rows "
            "flatter it."
        ),
    ]


def _row(task: dict[str, Any], found: dict[str, Any]) -> list[str]:
    first, lighter, grid, true = found["recommended"], found.get("lighter"), found["grid"], _true(found)
    cells = [task["name"], str(found["searched"]), metric(true["base"], task), first["name"]]
    cells += [metric(first["forecast"], task), metric(true["recommended"], task)]
    cells += [f"{metric(grid['true'], task)} ({grid['name']})", metric(grid["true"] - true["recommended"], task)]
    if lighter is None:
        return [*cells, *["–"] * 3]
    return [
        *cells,
        lighter["name"],
        percent(lighter["parameters"] / first["parameters"]),
        metric(true["lighter"], task),
    ]


def _true(found: dict[str, Any]) -> dict[str, float]:
    """Means over seeds of what the runs of a task reached."""
    return {role: fmean(found[role]["true"]) for role in ROLES if role in found}


def main(names: list[str], seeds: list[int], output: Path) -> None:
    """Search every task and really train what was found."""
    began = time.perf_counter()
    for name in names:
        known = measured() if FOUND.exists() else {}
        save(FOUND.stem, began, {"tasks": known | {name: measure(name, seeds, output)}})


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    main(options.tasks, options.seeds, options.output)
