"""Forecast and really train fine-tunes that are drawn at random from what people do.

    python benchmarks/wild/run.py [--first 0] [--draws 60] [-o runs/wild]

The distribution is in ``distribution.py``. Every draw has six candidates; they are forecast first, then all are really
trained, from two seeds in a third of the draws. Writes ``benchmarks/results/wild/NNN.json`` for every draw: settings,
simulated curves, forecasts and real curves. Draws that have a file are left out, and an interrupted draw goes on.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

import yaml
from models import MODELS
from tables import rounded, to_table, write_result
from truth.gather import REACH
from wild.distribution import Draw, draw

from foretune.cli.console import progress_bar
from foretune.forecast.run import forecast_run
from foretune.results import provenance
from foretune.task import load_task
from foretune.train import fine_tune

RESULTS = Path(__file__).parents[1] / "results" / "wild"
COLUMNS = ("step", "train_loss", "eval_loss", "eval_metric")
SIGNS = ("may_collapse", "unstable", "beginning", "warning_kinds")
TASK = ("identity", "metric_name", "train_examples", "eval_examples", "num_outputs", "majority_metric", "guess_loss")


def run(number: int, folder: Path) -> Path:
    """Forecast and train the candidates of one draw, and write its result.

    Args:
        number: Number of the draw.
        folder: Folder of all draws.

    Returns:
        The path of the result.
    """
    path = RESULTS / f"{number:03}.json"
    if path.exists():
        return path
    started, own = time.perf_counter(), folder / f"{number:03}"
    drawn = draw(number, folder / "texts")
    own.mkdir(parents=True, exist_ok=True)
    if not (own / "texts").exists():
        shutil.copytree(folder / "texts" / drawn.source, own / "texts")
    file = own / "run.yaml"
    file.write_text(yaml.safe_dump(drawn.run_file(MODELS[drawn.model]()), sort_keys=False), encoding="utf-8")
    forecast = forecast_run(file, own, bar=progress_bar)
    task = load_task(file)
    results: dict[str, list[dict[str, Any]]] = {candidate.name: [] for candidate in task.candidates}
    for seed in drawn.seeds:
        for candidate in task.candidates:
            result, _ = fine_tune(task, candidate, own, seed=seed)
            results[candidate.name].append(result)
            show(drawn, candidate.name, result)
    RESULTS.mkdir(exist_ok=True)
    write_result(path, provenance(number, time.perf_counter() - started) | content(drawn, forecast, results))
    shutil.rmtree(own)
    return path


def content(drawn: Draw, forecast: dict[str, Any], results: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return what is kept of a draw: settings, and the simulated, forecast and real curves of every candidate."""
    candidates = []
    for entry in sorted(forecast["candidates"], key=lambda entry: entry["name"]):
        simulated, predicted = entry["simulated"], entry["predicted"]
        candidates.append(
            {
                "name": entry["name"],
                "simulated": {"fitted_loss": simulated["fitted_loss"], "curve": curve(simulated["curve"])},
                "predicted": {
                    key: predicted[key] for key in ("eval_metric", "eval_metric_std", "eval_loss", "eval_loss_std")
                },
                **{key: entry[key] for key in (*REACH, *SIGNS)},
                "forecast_seconds": entry["cost"]["seconds"],
                "real": [
                    {"seed": result["seed"], "seconds": result["cost"]["seconds"], "curve": curve(result["curve"])}
                    | {"eval_seconds": result["cost"]["eval_seconds"]}
                    for result in results[entry["name"]]
                ],
            }
        )
    task = {key: forecast["task"][key] for key in TASK} | {"frozen": forecast["task"]["frozen"]}
    settings = drawn.to_json() | {"sealed": drawn.sealed}
    collect = {key: forecast["collect"][key] for key in ("seconds", "directions", "modules")}
    whole = {"draw": settings, "task": task, "collect": collect, "candidates": candidates}
    return rounded(whole | {"left_out": forecast["left_out"]}, 5)


def curve(points: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """Return the points of a curve as a table of ``COLUMNS``."""
    return to_table([{key: point[key] for key in COLUMNS} for point in points])


def show(drawn: Draw, name: str, result: dict[str, Any]) -> None:
    """Print one line about a finished run; what a sealed run gave is not shown."""
    gave = "sealed" if drawn.sealed else f"{result['final']['eval_metric']:.3f}"
    print(
        f"{drawn.number:03} {drawn.source} {drawn.model} {name}: {gave}, {result['cost']['seconds']:.0f} s", flush=True
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0, help="the first draw, so that several processes share the work")
    parser.add_argument("--draws", type=int, default=60, help="number of draws, from the first on")
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/wild"))
    options = parser.parse_args()
    for number in range(options.first, options.first + options.draws):
        run(number, options.output)
