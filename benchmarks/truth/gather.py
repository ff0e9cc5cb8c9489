"""Collect what was measured of a task in one small file: its real runs, and what every predictor said of them.

    python benchmarks/truth/gather.py [TASK...] [-o runs/truth]

Writes ``benchmarks/results/truth/TASK.json`` for every task that has real runs. What was gathered before stays: new
real runs and scores join the old ones, and new forecasts replace all old ones of the task.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from tables import Row, from_table, rounded, to_table, write_result
from truth.grid import TASKS, Setting, command_line, ordinary
from truth.metrics import Prediction, Truth

from foretune.results import provenance, read_json

RESULTS = Path(__file__).parents[1] / "results" / "truth"
ANY = "any"  # the seed of a predictor that does not depend on seeds
SIGNS = ("largest_step", "travel", "change_before_learning")  # of a run that may collapse
ENDS = ("eval_metric", "eval_loss", "train_loss", "fitted_loss")  # of a simulated run
FACTS = ("guess", "guess_loss", "outputs", "frozen", "collect")  # of a task, from its forecasts
REACH = (*SIGNS, "linearity_gap", "weight_change", "layer_changes", "depth")  # how far it goes
ENOUGH, FEW = 8, 4  # candidates: enough for rank correlations, and enough for errors
DO = "run benchmarks/truth/train.py, forecasts.py and score.py"


def gather(name: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Real runs, simulated runs and scores below a task's folder, with what was gathered before."""
    gathered = RESULTS / f"{name}.json"
    before = read_task(gathered) if gathered.exists() else {"runs": [], "scores": {}}
    runs = {(run["candidate"], run["seed"]): run for run in before["runs"]}
    for path in sorted([*folder.glob("train/*/result.json"), *folder.glob("train/*/seed-*/result.json")]):
        result = read_json(path, DO)
        final, cost = result["final"], result["cost"]
        runs[result["candidate"], result["seed"]] = {
            "candidate": result["candidate"],
            "seed": result["seed"],
            "eval_metric": round(final["eval_metric"], 5),
            "eval_loss": round(final["eval_loss"], 5),
            "train_loss": None if final["train_loss"] is None else round(final["train_loss"], 5),
            "seconds": round(cost["seconds"] + cost["eval_seconds"], 1),
        }
    scores: dict[str, dict[str, Any]] = before["scores"]
    for place, seed in [(folder, ANY), *((path, _seed(path)) for path in sorted(folder.glob("seed-*")))]:
        for path in sorted(place.glob("scores/*.json")):
            found = read_json(path, DO)
            scores.setdefault(path.stem, {})[seed] = {key: found[key] for key in ("candidates", "shared_seconds")}
    forecasts = {_seed(path.parent): read_json(path, DO) for path in sorted(folder.glob("seed-*/forecast.json"))}
    found = _forecast(list(forecasts.values())) if forecasts else {key: before.get(key) for key in FACTS}
    simulated = {seed: _simulated(each) for seed, each in forecasts.items()} or before.get("simulated", {})
    spent = float(sum(run["seconds"] for run in runs.values()))
    return (
        provenance(0, spent)
        | {"name": name, "model": setting.model, "metric_name": setting.metric_name}
        | found
        | {"runs": [runs[key] for key in sorted(runs)], "simulated": simulated, "scores": scores}
    )


def _forecast(forecasts: list[dict[str, Any]]) -> dict[str, Any]:
    """What forecasts know of a task, from the last seed."""
    task, collect = forecasts[-1]["task"], forecasts[-1]["collect"]
    known = [task["majority_metric"] or 0.0, rounded(task["guess_loss"]), task["num_outputs"], rounded(task["frozen"])]
    return dict(zip(FACTS, [*known, {"seconds": round(collect["seconds"], 2)}], strict=True))


def _simulated(forecast: dict[str, Any]) -> dict[str, Row]:
    """The simulated run of every candidate: where it ends, how far it goes, how far its beginning was followed."""
    return {
        each["name"]: rounded({key: each["simulated"][key] for key in ENDS} | {key: each[key] for key in REACH})
        | {"followed": rounded(begun["followed"]) if (begun := each["beginning"]) else None}
        | {"seconds": round(each["cost"]["seconds"], 2)}
        for each in forecast["candidates"]
    }


def _seed(folder: Path) -> str:
    return folder.name.removeprefix("seed-")


def write_task(path: Path, task: dict[str, Any]) -> None:
    """Write a gathered task: its runs, its simulations and each predictor's scores as tables."""
    simulated = [
        {"seed": int(seed), "candidate": name} | row
        for seed, found in task["simulated"].items()
        for name, row in found.items()
    ]
    scores = {
        name: {
            seed: {
                "shared_seconds": rounded(found["shared_seconds"], 3),
                "candidates": to_table([_score(each, row) for each, row in found["candidates"].items()]),
            }
            for seed, found in by_seed.items()
        }
        for name, by_seed in task["scores"].items()
    }
    write_result(path, task | {"runs": to_table(task["runs"]), "simulated": to_table(simulated), "scores": scores})


def _score(candidate: str, row: Row) -> Row:
    """A row of scores; ranks stay whole, so that candidates that differ little do not tie."""
    said = {key: value if key == "rank" else rounded(value) for key, value in row.items() if value is not None}
    return {"candidate": candidate} | said | {"seconds": rounded(row["seconds"], 3)}


def read_task(path: Path) -> dict[str, Any]:
    """A gathered task: ``runs`` as a list, ``simulated`` by seed and candidate, ``scores`` by predictor and seed."""
    task = read_json(path, DO)
    simulated: dict[str, dict[str, Row]] = {}
    for row in from_table(task["simulated"]):
        simulated.setdefault(str(row.pop("seed")), {})[row.pop("candidate")] = row
    for by_seed in task["scores"].values():
        for found in by_seed.values():
            found["candidates"] = {row.pop("candidate"): row for row in from_table(found["candidates"])}
    return task | {"runs": from_table(task["runs"]), "simulated": simulated}


def read_tasks() -> list[dict[str, Any]]:
    """Tasks of which enough candidates were both trained and forecast, in the order of the benchmark."""
    return [task for task in _read() if len(_both(task)) >= ENOUGH and _ordinary(task)]


def read_sizes() -> list[dict[str, Any]]:
    """Tasks with another number of training examples, of which a few candidates were trained and forecast."""
    return [task for task in _read() if FEW <= len(_both(task)) < ENOUGH and _ordinary(task)]


def read_fast() -> list[dict[str, Any]]:
    """Tasks with candidates near the learning rates from which runs collapse."""
    return [task for task in _read() if _both(task) and not _ordinary(task)]


def _ordinary(task: dict[str, Any]) -> bool:
    return TASKS[task["name"]].grid is ordinary


def _read() -> list[dict[str, Any]]:
    return [read_task(path) for name in TASKS if (path := RESULTS / f"{name}.json").exists()]


def _both(task: dict[str, Any]) -> set[str]:
    simulated = {name for found in task["simulated"].values() for name in found}
    return {run["candidate"] for run in task["runs"]} & simulated


def truth_of(content: dict[str, Any]) -> Truth:
    """The real runs of the candidates that were also simulated, as arrays: all predictors choose among the same ones.

    Only seeds from which at least half of these candidates were trained count.
    """
    both = _both(content)
    runs = [run for run in content["runs"] if run["candidate"] in both]
    candidates = tuple(dict.fromkeys(run["candidate"] for run in runs))
    counts = {run["seed"]: 0 for run in runs}
    for run in runs:
        counts[run["seed"]] += 1
    seeds = sorted(seed for seed, count in counts.items() if 2 * count >= len(candidates))
    shape = len(candidates), len(seeds)
    metric, loss = np.full(shape, np.nan), np.full(shape, np.nan)
    for run in runs:
        if run["seed"] in seeds:
            at = candidates.index(run["candidate"]), seeds.index(run["seed"])
            metric[at], loss[at] = run["eval_metric"], run["eval_loss"]
    seconds = [min(run["seconds"] for run in runs if run["candidate"] == name) for name in candidates]
    return Truth(candidates, metric, loss, np.array(seconds), tuple(seeds))


def simulation(task: dict[str, Any], candidate: str, seed: int) -> dict[str, Any] | None:
    """The simulation of a candidate from a seed, or None."""
    return task["simulated"].get(str(seed), {}).get(candidate)


def prediction_of(scores: dict[str, Any], truth: Truth) -> Prediction:
    """A predictor's scores of a task as arrays; nan where it has none."""
    said = [_said(scores.get(str(seed), scores.get(ANY)), truth.candidates) for seed in truth.seeds]
    return Prediction(
        **{
            name: np.array([[row.get(name) for row in rows] for rows in said], dtype=float).T
            for name in Prediction.__dataclass_fields__
        }
    )


def _said(scores: dict[str, Any] | None, candidates: tuple[str, ...]) -> list[dict[str, Any]]:
    """What was said of each candidate, with its part of the seconds that all of them share."""
    rows = scores["candidates"] if scores else {}
    part = scores["shared_seconds"] / max(1, len(rows)) if scores else 0.0
    return [row | {"seconds": row["seconds"] + part} if (row := rows.get(name)) else {} for name in candidates]


if __name__ == "__main__":
    options = command_line(__doc__).parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in options.tasks:
        content = gather(name, TASKS[name], options.output / name)
        if content["runs"]:
            write_task(RESULTS / f"{name}.json", content)
            forecasts = sum(len(found) for found in content["simulated"].values())
            print(f"{name}: {len(content['runs'])} runs, {forecasts} forecasts")
