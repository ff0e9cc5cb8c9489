"""``forecast.json`` from ``run.yaml``."""

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.forecast.beginning import BEGIN
from foretune.forecast.expectation import Forecast
from foretune.forecast.forecast import SEEDS, Bar, begun, forecast
from foretune.forecast.starts import Starts
from foretune.results import provenance, writable_directory, write_json
from foretune.tangents import Tangents, check_forecastable, collect
from foretune.task import Task, load_run
from foretune.task.loading import LoadedRun


def forecast_run(
    path: str | Path,
    directory: str | Path,
    *,
    names: Sequence[str] | None = None,
    seeds: int = SEEDS,
    refreshes: int = 0,
    sample: int | None = None,
    begin: float = BEGIN,
    bar: Bar,
) -> dict[str, Any]:
    """Forecast the candidates of a ``run.yaml``; writes ``forecast.json`` and keeps tangents and beginnings beside it.

    Anything wrong in the file is an ``InputError``.

    Args:
        path: The YAML file.
        directory: Where results go.
        names: Only these candidates.
        seeds: Simulated seeds of each candidate, each with tangents of its own head where that is new.
        refreshes: How often tangents are taken again in each simulated run.
        sample: Training examples that stand for all of them; by default each for itself.
        begin: Share of the real run that is made where it may collapse; 0: of none.
        bar: Makes a progress bar for a label.
    """
    started = time.perf_counter()
    directory = writable_directory(directory)
    loaded = load_run(path, names)
    task = loaded.task
    for candidate in task.candidates:
        check_forecastable(candidate.peft, f"{path}: candidate {candidate.name!r}: peft")
    layers = {module.name for adaptation in loaded.adaptations for module in adaptation.modules}
    starts = collected(loaded, path, layers, directory, sample, bar)
    for seed in sorted({candidate.seed + extra for candidate in task.candidates for extra in range(seeds)}):
        starts.tangents(seed)
    with bar("forecasting") as progress, task.placed():
        forecasts = forecast(starts, task, task.candidates, seeds=seeds, refreshes=refreshes, progress=progress)
    forecasts = begun(forecasts, task, begin, directory=directory, bar=bar)
    result = summary(loaded, starts, forecasts, time.perf_counter() - started)
    write_json(directory / "forecast.json", result)
    return result


def collected(
    loaded: LoadedRun, path: str | Path, layers: Iterable[str], directory: Path, sample: int | None, bar: Bar
) -> Starts:
    """The tangents of these layers, kept in the run directory, and what runs of the file's task start from.

    Raises:
        InputError: Candidates train different modules in full.
    """
    heads = {adaptation.heads for adaptation in loaded.adaptations}
    if len(heads) > 1:
        raise InputError(
            f"{path}: peft.modules_to_save",
            f"candidates train different modules in full: {' and '.join(map(str, sorted(heads)))}",
            "forecast them in separate runs",
        )
    (head,) = heads

    def take(task: Task, seed: int | None = None) -> Tangents:
        with bar("collecting tangents" if seed is None else f"collecting tangents, seed {seed}") as progress:
            return collect(
                task, sorted(layers), heads=head, directory=directory / "tangents", sample=sample, progress=progress
            )

    return Starts(loaded.task, take(loaded.task), take)


def summary(loaded: LoadedRun, starts: Starts, forecasts: Sequence[Forecast], seconds: float) -> dict[str, Any]:
    """The content of ``forecast.json``."""
    task, tangents = loaded.task, starts.first
    return provenance(task.candidates[0].seed, seconds, task.device) | {
        "task": describe(task, str(loaded.config.model.path)) | {"frozen": forecasts[0].frozen},
        "collect": {
            "seconds": sum(each.seconds for each in starts.passes),
            "reused": all(each.reused for each in starts.passes),
            "train_examples": tangents.num_train,
            "directions": tangents.num_directions,
            "modules": len(tangents.layers),
            "bytes": sum(each.num_bytes for each in starts.passes),
        },
        "candidates": [each.to_json() for each in forecasts],
    }


def describe(task: Task, model: str) -> dict[str, Any]:
    """What the forecast is of."""
    return {
        "name": task.name,
        "model": model,
        "metric_name": task.metric_name,
        "loss": task.loss,
        "train_examples": len(task.train),
        "eval_examples": len(task.eval),
        "num_outputs": task.num_outputs,
        "labels": task.labels,
        "majority_metric": task.majority_metric,
        "guess_loss": task.guess_loss,
    }
