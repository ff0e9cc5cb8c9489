"""Reads the result files of a run directory into plain objects. The page and its figures use only these objects."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.forecast.compare import Z_90, higher_is_better, mean_final
from foretune.forecast.truths import LINEARISED, UNKNOWN, real_runs, result_paths
from foretune.report.numbers import Metric
from foretune.results import read_json

ALONE = (LINEARISED, UNKNOWN)  # real runs that are skipped for these reasons are shown without a forecast


@dataclass(frozen=True)
class Point:
    """One evaluation on a training curve. Time is in epochs."""

    epoch: float | None
    train_loss: float | None
    eval_loss: float | None
    eval_metric: float | None
    eval_loss_std: float | None
    eval_metric_std: float | None


@dataclass(frozen=True)
class Outcome:
    """The final values and the training curve of a fine-tune, forecast or real."""

    eval_metric: float | None
    eval_loss: float | None
    train_loss: float | None
    eval_metric_std: float | None
    curve: tuple[Point, ...]

    @property
    def band(self) -> float | None:
        """Half the width of the metric's 90% interval, 1.645 · std."""
        return None if self.eval_metric_std is None else Z_90 * self.eval_metric_std


@dataclass(frozen=True)
class RiskBounds:
    """Squared-loss risks of a candidate's linearised model, per training example (docs/theory.md P5)."""

    steps: float | None
    initial: float | None
    lower: float | None
    upper: float | None
    ridge: float | None


@dataclass(frozen=True)
class Kernel:
    """The numbers of a candidate's NTK, its neural tangent kernel (docs/theory.md section 4)."""

    condition_number: float | None
    condition_number_std: float | None
    regularised_condition_number: float | None
    trace: float | None
    effective_dimension: float | None
    alignment: float | None
    strength: float | None
    spectrum: tuple[float | None, ...]
    risk_bounds: RiskBounds


@dataclass(frozen=True)
class Candidate:
    """Everything that the result files say about a candidate."""

    name: str
    peft: dict[str, Any]
    training: dict[str, Any]
    proximal: dict[str, Any]
    trainable_parameters: float | None
    forecast: Outcome | None = None
    truth: Outcome | None = None
    kernel: Kernel | None = None
    forecast_seconds: float | None = None
    training_seconds: float | None = None
    warnings: tuple[str, ...] = ()

    @property
    def error(self) -> float | None:
        """The forecast metric minus the real one."""
        if not self.forecast or not self.truth:
            return None
        predicted, true = self.forecast.eval_metric, self.truth.eval_metric
        return None if predicted is None or true is None else predicted - true


@dataclass(frozen=True)
class LayerLinearity:
    """How linear a fine-tune was in one layer, with all other layers at their values before training."""

    layer: str
    nonlinearity: float | None
    share: float | None
    displacement: float | None


@dataclass(frozen=True)
class Linearity:
    """How linear a trained adapter is (docs/theory.md P4), and the certified bounds of its run (docs/theory.md P3)."""

    name: str
    adapter: str
    sentences: tuple[str, ...]
    nonlinearity: float | None
    median: float | None
    upper: float | None
    label_agreement: float | None
    divergence: float | None
    bound_parameters: float | None
    bound_outputs: float | None
    bound_same_label: float | None
    layers: tuple[LayerLinearity, ...]


@dataclass(frozen=True)
class Run:
    """The contents of a run directory. Candidates are sorted, best first."""

    directory: str
    task: dict[str, Any]
    collect: dict[str, Any]
    metric: Metric
    candidates: tuple[Candidate, ...]
    comparison: dict[str, Any] | None
    sources: dict[str, dict[str, Any]]
    notes: list[str] = field(default_factory=list)
    linearity: tuple[Linearity, ...] = ()
    roles: dict[str, Candidate] = field(default_factory=dict)  # results of a search: recommended, base, lighter


_KERNEL_NUMBERS = [key for key in Kernel.__dataclass_fields__ if key not in {"spectrum", "risk_bounds"}]


def read_run(directory: Path) -> Run:
    """Read all result files in a run directory.

    Raises:
        InputError: The directory has no forecast, training result or certificate, or a file cannot be read.
    """
    forecast_path, comparison_path = directory / "forecast.json", directory / "comparison.json"
    certificate_paths = sorted([*directory.glob("certificate.json"), *directory.glob("train/**/certificate.json")])
    if not forecast_path.exists() and not result_paths(directory) and not certificate_paths:
        raise InputError(
            str(directory),
            "no result files to report on",
            f"run: foretune forecast run.yaml -o {directory}, or foretune train run.yaml -o {directory}",
        )
    forecast: dict[str, Any] = {}
    if forecast_path.exists():
        forecast = read_json(forecast_path, f"run: foretune forecast run.yaml -o {directory}")
    certificates = {path: read_json(path, "run: foretune certify again") for path in certificate_paths}
    task = forecast.get("task") or {}
    notes = [str(warning) for warning in forecast.get("warnings") or []]
    notes += [f"{item['name']} was not forecast: {item['reason']}" for item in forecast.get("left_out") or []]
    candidates = {item["name"]: _forecast(item) for item in forecast.get("candidates") or []}
    runs, skipped = real_runs(directory, forecast or {"candidates": []})
    for run in runs:
        name = run.candidate["name"]
        candidates[name] = Candidate(**{**vars(candidates[name]), **_truth(run.results)})
    results = {directory / "train" / str(run.candidate["name"]): run.results[0] for run in runs}
    for item in skipped:
        path = directory / item["path"]
        if item["reason"] in ALONE and path.parent.parent.name == "train":
            results[path] = read_json(path, f"delete {path}")
            alone = _without_forecast(results[path])
            candidates[alone.name] = alone
        elif item["reason"] not in ALONE:
            notes.append(f"{item['path']} ({item['name']}) is left out: {item['reason']}.")
    metric = Metric(_metric_name(task, forecast, list(results.values())))
    ranked = tuple(candidates.values()) if forecast else _by_truth(list(candidates.values()), metric)

    comparison, sources = None, {"forecast.json": forecast} if forecast else {}
    sources |= {str(path.relative_to(directory)): content for path, content in (results | certificates).items()}
    if comparison_path.exists() and forecast:
        content = read_json(comparison_path, f"run: foretune compare {directory}")
        if _describes(content, ranked):
            comparison, sources = content, sources | {"comparison.json": content}
        else:
            notes.append(f"comparison.json does not match the results: run foretune compare {directory} again.")
    linearity = tuple(_linearity(content, path.parent.relative_to(directory)) for path, content in certificates.items())
    roles = {role: candidates[name] for role, name in (forecast.get("roles") or {}).items() if name}
    collected = forecast.get("collect") or {}
    return Run(str(directory), task, collected, metric, ranked, comparison, sources, notes, linearity, roles)


def _metric_name(task: dict[str, Any], forecast: dict[str, Any], results: list[dict[str, Any]]) -> str | None:
    names = [task.get("metric_name")]
    names += [(item.get("predicted") or {}).get("metric_name") for item in forecast.get("candidates") or []]
    names += [(result.get("final") or {}).get("metric_name") for result in results]
    return next((str(name) for name in names if name), None)


def _forecast(item: dict[str, Any]) -> Candidate:
    predicted, kernel, cost = (item.get(key) or {} for key in ("predicted", "kernel", "cost"))
    return Candidate(
        name=str(item["name"]),
        peft=item.get("peft") or {},
        training=item.get("training") or {},
        proximal=item.get("proximal") or {},
        trainable_parameters=_number(cost.get("trainable_parameters")),
        forecast=_outcome(predicted, predicted.get("curve")),
        kernel=Kernel(
            **{key: _number(kernel.get(key)) for key in _KERNEL_NUMBERS},
            spectrum=tuple(_number(value) for value in kernel.get("spectrum") or []),
            risk_bounds=RiskBounds(
                **{key: _number((kernel.get("risk_bounds") or {}).get(key)) for key in RiskBounds.__dataclass_fields__}
            ),
        ),
        forecast_seconds=_number(cost.get("seconds")),
        warnings=tuple(str(text) for text in item.get("warnings") or []),
    )


def _truth(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean final values of a candidate's real runs, with the curve and the time of the first run."""
    cost = results[0].get("cost") or {}
    seconds = [_number(cost.get(key)) for key in ("seconds", "eval_seconds")]
    total = None if seconds == [None, None] else sum(value or 0.0 for value in seconds)
    return {"truth": _outcome(mean_final(results), results[0].get("curve")), "training_seconds": total}


def _without_forecast(result: dict[str, Any]) -> Candidate:
    """A real run that no forecast belongs to."""
    name, cost = str(result["candidate"]), result.get("cost") or {}
    return Candidate(
        name=f"{name} (linearised)" if result.get("linearised") else name,
        peft=result.get("peft") or {},
        training=result.get("training") or {},
        proximal=result.get("proximal") or {},
        trainable_parameters=_number(cost.get("trainable_parameters")),
        **_truth([result]),
    )


def _outcome(final: dict[str, Any], curve: list[dict[str, Any]] | None) -> Outcome:
    return Outcome(
        **{key: _number(final.get(key)) for key in ("eval_metric", "eval_loss", "train_loss", "eval_metric_std")},
        curve=tuple(
            Point(**{key: _number(point.get(key)) for key in Point.__dataclass_fields__}) for point in curve or []
        ),
    )


def _linearity(certificate: dict[str, Any], folder: Path) -> Linearity:
    """The certificate in a folder of the run directory."""
    quantiles, bound = certificate.get("quantiles") or {}, certificate.get("bound") or {}
    name = str(certificate["name"])
    return Linearity(
        name=f"{name} (linearised)" if certificate.get("linearised") else name,
        adapter=str(folder / str(certificate.get("adapter") or "")),
        sentences=tuple(str(text) for text in certificate.get("sentences") or []),
        **{key: _number(certificate.get(key)) for key in ("nonlinearity", "label_agreement", "divergence")},
        median=_number(quantiles.get("0.5")),
        upper=_number(quantiles.get("0.95")),
        **{f"bound_{key}": _number(bound.get(key)) for key in ("parameters", "outputs", "same_label")},
        layers=tuple(
            LayerLinearity(
                str(layer["layer"]), *(_number(layer.get(key)) for key in ("nonlinearity", "share", "displacement"))
            )
            for layer in certificate.get("layers") or []
        ),
    )


def _by_truth(candidates: list[Candidate], metric: Metric) -> tuple[Candidate, ...]:
    sign = -1 if higher_is_better(metric.name) else 1

    def key(candidate: Candidate) -> tuple[bool, float]:
        value = candidate.truth.eval_metric if candidate.truth else None
        return value is None, sign * (value or 0.0)

    return tuple(sorted(candidates, key=key))


def _describes(comparison: dict[str, Any], candidates: tuple[Candidate, ...]) -> bool:
    """Whether a comparison was made from the numbers that this page shows."""
    compared = {
        str(row["name"]): (row["predicted"].get("eval_metric"), row["true"].get("eval_metric"))
        for row in comparison.get("candidates") or []
    }
    return compared == {
        item.name: (item.forecast.eval_metric, item.truth.eval_metric)
        for item in candidates
        if item.forecast and item.truth
    }


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
