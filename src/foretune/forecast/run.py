"""``forecast.json`` from ``run.yaml``."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

from foretune.errors import InputError
from foretune.forecast.beginning import BEGIN
from foretune.forecast.compare import higher_is_better, worth
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
    """Forecast the candidates of a ``run.yaml``; writes ``forecast.json`` and keeps tangents and beginnings beside it.

    Candidates that cannot be forecast are left out, with the reason in ``left_out``. Asked for some candidates only, it
    keeps the forecasts of the others that are in the directory, if they are of the same task and options. Anything
    wrong in the file is an ``InputError``.

    Args:
        path: The YAML file.
        directory: Where results go.
        names: Only these candidates.
        seeds: Simulated seeds of each candidate, each with tangents of its own head where that is new.
        refreshes: How often tangents are taken again in each simulated run.
        sample: Training examples that stand for all of them; by default each for itself.
        begin: Share of the real run that is made where it may collapse; 0: of none.
        bar: Makes a progress bar for a label.
        notify: Called with a sentence about earlier results that are not used.
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
    """A result with the candidates that an earlier forecast has beside its own, ranked together.

    Args:
        path: The earlier ``forecast.json``, if there is one.
        result: The new content.
        notify: Called with a sentence if the earlier one is of another task or other options, and is replaced.
    """
    if not path.exists():
        return result
    try:
        earlier = read_json(path, "")
        same = all(earlier[key] == result[key] for key in ("options",))
        same = same and earlier["task"]["identity"] == result["task"]["identity"]
        why = "" if same else "it is of other data, another model or other options"
    except (InputError, KeyError) as error:
        earlier, why = {}, error.found if isinstance(error, InputError) else "it is of another version"
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
        risks = entry["may_collapse"], entry["unstable"]
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
    """The tangents of these layers, kept in the run directory, and what runs of the file's task start from."""
    head = loaded.adaptations[0].heads

    def take(task: Task, seed: int | None = None) -> Tangents:
        with bar("collecting tangents" if seed is None else f"collecting tangents, seed {seed}") as progress:
            return collect(
                task,
                sorted(layers),
                heads=head,
                directory=directory / "tangents",
                sample=sample,
                progress=progress,
                notify=notify,
            )

    return Starts(loaded.task, take(loaded.task), take)


def summary(examined: Examined, starts: Starts, forecasts: Sequence[Forecast], seconds: float) -> dict[str, Any]:
    """The content of ``forecast.json``."""
    loaded, tangents = examined.loaded, starts.first
    task = loaded.task
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
        "left_out": examined.left_out,
        "warnings": list(loaded.warnings),
    }


def describe(task: Task, model: str) -> dict[str, Any]:
    """What the forecast is of."""
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
        second: Name of the second.
        margin: Difference of their forecast metrics, in the metric's unit.
        chance: Probability that the first ends better, if the errors of both are normal and independent.
    """

    second: str
    margin: float
    chance: float


def lead(candidates: Sequence[dict[str, Any]]) -> Lead | None:
    """The lead of the first of some ranked entries of ``forecast.json``; None if nothing can be said."""
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
