"""What ``foretune recommend`` is worth: what it recommends is really trained and held against the best of the grid.

    python benchmarks/truth/recommended.py [TASK...] [--seeds 0 1] [-o runs/truth]

It begins where many scripts do, query and value at a learning rate of 1e-4, and knows nothing of the grid; its
corrections are learnt on other tasks. Tasks that are not named stay as they were measured before.
"""

import sys
import time
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest.mock import patch

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

import yaml
from common import RESULTS, save
from paper.reading import paragraph
from truth.calibrate import Weights
from truth.gather import read_tasks, truth_of
from truth.grid import command_line, run_file
from truth.ours import fit_without

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
    """The search of a task, real runs of what it found, and the best of the grid."""
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


def section() -> list[str]:
    """Of ``docs/truth.md``."""
    found = read_json(FOUND, "run benchmarks/truth/recommended.py")["tasks"]
    rows = [_row(name, each) for name, each in found.items()]
    behind, ahead = (fmean(row[key] for row in rows) for key in ("behind", "ahead"))
    spent = [each["seconds"] / each["trained_seconds"] for each in found.values()]
    return [
        "## What is recommended",
        "",
        *paragraph(
            f"`foretune recommend` (`python benchmarks/truth/recommended.py`) on {len(found)} tasks, from query and "
            f"value at a learning rate of {RATE:.0e}, where many scripts begin. It knows nothing of the candidates "
            "above, and its corrections are learnt on other tasks. What it recommends and what it names as lighter was "
            "then really trained, from two seeds. Best above: of the real candidates above, with the luck of their "
            f"seeds. On average recommended runs are {ahead:.1f} points ahead of the file's own and "
            f"{abs(behind):.1f} {'behind' if behind > 0 else 'ahead of'} the best above. A search took as long as "
            f"{min(spent):.1f} to {max(spent):.1f} of these real runs, beside other work."
        ),
        "| task | searched | own | recommended | forecast | true | best above | behind | lighter | parameters | true |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
        *(f"| {' | '.join(row['cells'])} |" for row in rows),
        "",
    ]


def _row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    first, lighter, grid = found["recommended"], found.get("lighter"), found["grid"]
    true = {role: 100 * fmean(found[role]["true"]) for role in ROLES if role in found}
    behind = 100 * grid["true"] - true["recommended"]
    cells = [name, str(found["searched"]), f"{true['base']:.1f}", first["name"], f"{100 * first['forecast']:.1f}"]
    cells += [f"{true['recommended']:.1f}", f"{100 * grid['true']:.1f} ({grid['name']})", f"{behind:.1f}"]
    share = lighter and lighter["parameters"] / first["parameters"]
    cells += [lighter["name"], f"{share:.0%}", f"{true['lighter']:.1f}"] if lighter else ["–"] * 3
    return {"cells": cells, "behind": behind, "ahead": true["recommended"] - true["base"]}


def main(names: list[str], seeds: list[int], output: Path) -> None:
    """Search every task and really train what was found."""
    began = time.perf_counter()
    for name in names:
        known = read_json(FOUND, "run benchmarks/truth/recommended.py")["tasks"] if FOUND.exists() else {}
        save(FOUND.stem, began, {"tasks": known | {name: measure(name, seeds, output)}})


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    main(options.tasks, options.seeds, options.output)
