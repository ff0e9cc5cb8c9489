"""Write ``forecast.json`` for a ``run.yaml``."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from foretune.errors import InputError
from foretune.forecast.beginning import BEGIN
from foretune.forecast.compare import higher_is_better, is_at_risk, worth
from foretune.forecast.eligibility import Examined, examine
from foretune.forecast.expectation import Forecast
from foretune.forecast.forecast import SEEDS, Bar, begun, forecast
from foretune.forecast.starts import Starts
from foretune.results import provenance, read_json, write_json
from foretune.run_directory import run_directory
from foretune.tangents import Tangents, collect
from foretune.task import Task, load_run
from foretune.task.loading import LoadedRun

Notify = Callable[[str], None]


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
    notify: Notify | None = None,
) -> dict[str, Any]:
    """Forecast the candidates of a ``run.yaml`` and write ``forecast.json``.

    Tangents and the beginnings of real runs are kept in the same directory. Candidates that cannot be forecast are
    left out, with the reason in ``left_out``. If only some candidates are asked for, the forecasts of the others in the
    directory are kept, provided they have the same task and options. A mistake in the file raises an ``InputError``.

    Args:
        path: The YAML file.
        directory: The run directory for the results.
        names: Forecast only these candidates; by default all.
        seeds: Number of simulated seeds per candidate. A seed with a head of its own gets tangents of its own.
        refreshes: How often new tangents are taken in every simulated run.
        sample: Number of training examples that stand for all of them; by default all are used.
        begin: Share of the steps of the real run to train if it may collapse; 0 trains nothing.
        bar: Makes a progress bar for a label.
        notify: Called with a sentence about earlier results that are not used.

    Returns:
        The content of ``forecast.json``.
    """
    started = time.perf_counter()
    options = {"seeds": seeds, "refreshes": refreshes, "sample": sample, "begin": begin}
    with run_directory(directory) as directory:
        examined = examine(load_run(path, names), path)
        task = examined.loaded.task
        layers = {module.name for adaptation in examined.loaded.adaptations for module in adaptation.modules}
        starts = collected(examined.loaded, layers, directory, sample, bar, notify)
        for seed in sorted({candidate.seed + extra for candidate in task.candidates for extra in range(seeds)}):
            starts.tangents(seed)
        with bar("forecasting") as progress, task.placed():
            forecasts = forecast(starts, task, task.candidates, seeds=seeds, refreshes=refreshes, progress=progress)
        forecasts = begun(forecasts, task, begin, directory=directory, bar=bar, notify=notify)
        result = summary(examined, starts, forecasts, time.perf_counter() - started) | {"options": options}
        if names is not None:
            result = with_earlier(directory / "forecast.json", result, notify or (lambda _: None))
        write_json(directory / "forecast.json", result)
    return result


def with_earlier(path: Path, result: dict[str, Any], notify: Notify) -> dict[str, Any]:
    """Add the other candidates of an earlier forecast to a new one, and rank all of them.

    An earlier forecast with another task or other options is renamed and not used.

    Args:
        path: The earlier ``forecast.json``, if there is one.
        result: The content of the new forecast.
        notify: Called with a sentence if the earlier forecast is not used.

    Returns:
        The content with the candidates of both.
    """
    if not path.exists():
        return result
    try:
        earlier = read_json(path, "")
        same = all(earlier[key] == result[key] for key in ("options",))
        same = same and earlier["task"]["identity"] == result["task"]["identity"]
        why = "" if same else "it has other data, another model or other options"
    except (InputError, KeyError) as error:
        earlier, why = {}, error.found if isinstance(error, InputError) else "another version of foretune wrote it"
    if why:
        kept = path.with_name("forecast-before.json")
        path.replace(kept)
        notify(f"{path}: {why}; it was renamed to {kept.name}")
        return result
    new = {entry["name"] for entry in result["candidates"]}
    others = [entry for entry in earlier["candidates"] if entry["name"] not in new]
    higher = higher_is_better(result["task"]["metric_name"])

    def rank(entry: dict[str, Any]) -> tuple[float, float]:
        predicted = entry["predicted"]
        risks = is_at_risk(entry), entry["unstable"]
        value = worth(predicted["eval_metric"] or 0.0, predicted["eval_metric_std"], *risks, higher)
        return -value if higher else value, predicted["eval_loss"] or math.inf

    return result | {"candidates": sorted([*result["candidates"], *others], key=rank)}


def collected(
    loaded: LoadedRun,
    layers: Iterable[str],
    directory: Path,
    sample: int | None,
    bar: Bar,
    notify: Notify | None = None,
) -> Starts:
    """Collect tangents of a loaded run, and keep them in the run directory.

    Args:
        loaded: The loaded run file.
        layers: The layers whose tangents are needed.
        directory: The run directory.
        sample: Number of training examples that stand for all of them; None for all.
        bar: Makes a progress bar for a label.
        notify: Called with a sentence about kept tangents that cannot be used.

    Returns:
        The start of every run, with its tangents.
    """
    heads = loaded.adaptations[0].heads

    def collect_for(task: Task, seed: int | None = None) -> Tangents:
        with bar("collecting tangents" if seed is None else f"collecting tangents, seed {seed}") as progress:
            return collect(
                task,
                sorted(layers),
                heads=heads,
                directory=directory / "tangents",
                sample=sample,
                progress=progress,
                notify=notify,
            )

    return Starts(loaded.task, collect_for(loaded.task), collect_for)


def summary(examined: Examined, starts: Starts, forecasts: Sequence[Forecast], seconds: float) -> dict[str, Any]:
    """Return the content of ``forecast.json``.

    Args:
        examined: The run and the candidates that were left out.
        starts: The start of every run, with its tangents.
        forecasts: The forecasts, best first.
        seconds: Time that all of it took.

    Returns:
        A dictionary that can be written as JSON.
    """
    loaded, tangents = examined.loaded, starts.first
    task = loaded.task
    return provenance(task.candidates[0].seed, seconds, task.device) | {
        "task": describe(task, str(loaded.config.model.path)) | {"frozen": forecasts[0].frozen},
        "collect": {
            "seconds": sum(one_pass.seconds for one_pass in starts.passes),
            "reused": all(one_pass.reused for one_pass in starts.passes),
            "train_examples": tangents.num_train,
            "directions": tangents.num_directions,
            "modules": len(tangents.layers),
            "bytes": sum(one_pass.num_bytes for one_pass in starts.passes),
        },
        "candidates": [result.to_json() for result in forecasts],
        "left_out": examined.left_out,
        "warnings": list(loaded.warnings),
    }


def describe(task: Task, model: str) -> dict[str, Any]:
    """Return the description of the task in ``forecast.json``; ``model`` is its name or path."""
    return {
        "name": task.name,
        "model": model,
        "metric_name": task.metric_name,
        "identity": task.identity,
        "loss": task.loss,
        "train_examples": len(task.train),
        "eval_examples": len(task.eval),
        "num_outputs": task.num_outputs,
        "labels": task.labels,
        "majority_metric": task.majority_metric,
        "guess_loss": task.guess_loss,
    }


class Lead(NamedTuple):
    """How far the first of several ranked candidates is ahead of the second.

    Attributes:
        second: Name of the second candidate.
        margin: How much better the forecast metric of the first is, in the metric's unit.
        chance: Probability that the first ends better, if the errors of both are normal and independent.
    """

    second: str
    margin: float
    chance: float


def lead(candidates: Sequence[dict[str, Any]]) -> Lead | None:
    """Return the lead of the first candidate.

    Args:
        candidates: Entries of ``forecast.json``, best first.

    Returns:
        The lead; None if there are fewer than two candidates, or if a metric or its error bar is missing.
    """
    if len(candidates) < 2:
        return None
    first, second = (entry["predicted"] for entry in candidates[:2])
    bars = [entry["eval_metric_std"] for entry in (first, second)]
    if None in bars or first["eval_metric"] is None or second["eval_metric"] is None:
        return None
    sign = 1.0 if higher_is_better(first["metric_name"]) else -1.0
    margin = sign * (first["eval_metric"] - second["eval_metric"])
    spread = math.hypot(*bars)
    chance = NormalDist().cdf(margin / spread) if spread > 0 else float(margin > 0)
    return Lead(candidates[1]["name"], margin, chance)
