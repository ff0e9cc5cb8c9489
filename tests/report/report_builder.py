"""Valid result files with made-up numbers, and a pass over every number that makes it null."""

import math
from pathlib import Path
from typing import Any

from foretune.forecast.compare import compare
from foretune.results import provenance, write_json

HEADER = provenance(0, 12.5)
NAMES = ["all-linear", "query-value", "top-layers", "rslora-r64", "dora", "mlp-only", "bias-only"]
EPOCHS = 6


def forecast_file(names: list[str] = NAMES, *, metric: str = "accuracy", **task: Any) -> dict[str, Any]:
    """A whole forecast.json; keyword arguments override the task's fields."""
    return {
        **HEADER,
        "task": {
            "name": "movie reviews",
            "model": "sentence-transformers/all-MiniLM-L6-v2",
            "metric_name": metric,
            "loss": "cross_entropy",
            "train_examples": 256,
            "eval_examples": 400,
            "num_outputs": 2,
            "labels": ["negative", "positive"],
            "majority_metric": 0.52,
            **task,
        },
        "collect": {"seconds": 41.0, "reused": False, "directions": 8, "modules": 36, "bytes": 123_456_789},
        "candidates": [candidate(name, index, metric) for index, name in enumerate(names)],
    }


def candidate(name: str, index: int = 0, metric: str = "accuracy") -> dict[str, Any]:
    best = 0.873 - 0.018 * index
    curve = points(best, index) | {
        "eval_loss_std": [0.01] * (EPOCHS + 1),
        "eval_metric_std": [0.012] * (EPOCHS + 1),
    }
    return {
        "name": name,
        **configuration(index),
        "predicted": {
            "train_loss": 0.21,
            "eval_loss": 0.35 + 0.02 * index,
            "eval_metric": best,
            "metric_name": metric,
            "eval_metric_std": 0.009 + 0.002 * index,
            "eval_loss_std": 0.01,
            "curve": as_list(curve),
            "seeds": [0, 1, 2],
        },
        "kernel": {
            "condition_number": 1.2e4 * 3**index,
            "condition_number_std": 900.0,
            "regularised_condition_number": 130.0,
            "trace": 5.2e3 / (index + 1),
            "effective_dimension": 41.3,
            "alignment": 0.213,
            "spectrum": [200 / (1 + rank) ** (1.3 + 0.1 * index) for rank in range(200)],
            "strength": 0.1,
            "risk_bounds": {"steps": 48, "initial": 0.25, "lower": 1e-9, "upper": 0.217, "ridge": 0.0912},
        },
        "cost": {"seconds": 1.7, "trainable_parameters": 294_912 // (index + 1)},
        "warnings": ["the linear picture is weak: |Δf| is 3× the initial spread"] if index == 1 else [],
    }


def result_file(name: str, index: int = 0, *, off: float = 0.0, metric: str = "accuracy", **more: Any) -> dict:
    """A whole result.json whose true metric is ``off`` above its forecast."""
    true = 0.873 - 0.018 * index + off
    return {
        **HEADER,
        "candidate": name,
        **configuration(index),
        "linearised": False,
        "final": {
            "train_loss": 0.2,
            "eval_loss": 0.37 + 0.02 * index,
            "eval_metric": true,
            "metric_name": metric,
        },
        "curve": as_list(points(true, index)),
        "cost": {
            "seconds": 75.0,
            "eval_seconds": 8.0,
            "trainable_parameters": 294_912,
            "peak_memory_bytes": 1 << 30,
        },
        **more,
    }


def certificate_file(name: str, **more: Any) -> dict[str, Any]:
    """A whole certificate.json, with a bound."""
    return {
        **HEADER,
        "name": name,
        "linearised": False,
        "adapter": "adapter",
        "examples": 400,
        "verdict": "nearly linear",
        "sentences": ["Nearly linear: off by 0.23.", "Certified: within 0.5."],
        "thresholds": {"lazy": 0.1, "nearly linear": 0.5},
        "nonlinearity": 0.23,
        "quantiles": {"0.05": 0.1, "0.25": 0.15, "0.5": 0.21, "0.75": 0.3, "0.95": 0.47},
        "change": 1.1,
        "displacement": 3.2,
        "label_agreement": 0.97,
        "divergence": 0.0123,
        "metric_name": "accuracy",
        "metrics": {"before": 0.5, "network": 0.87, "linearised": 0.86},
        "layers": [{"layer": "encoder.layer.0.query", "displacement": 1.5, "share": 0.4, "nonlinearity": 0.12}],
        "bound": {
            "certified": True,
            "reason": None,
            "parameters": 0.512,
            "relative": 0.16,
            "outputs": 0.61,
            "same_label": 0.845,
            "steps": 64,
            "seconds_per_step": 0.3,
        },
        **more,
    }


def configuration(index: int) -> dict[str, Any]:
    return {
        "peft": {"type": "lora", "r": 8 + index, "target_modules": ["query", "value"]},
        "training": {"learning_rate": 1e-3, "num_train_epochs": EPOCHS, "optim": "adamw_torch"},
    }


def points(best: float, index: int) -> dict[str, list[float | None]]:
    epochs = range(EPOCHS + 1)
    rise = [1 - math.exp(-(epoch / (1.2 + 0.1 * index))) for epoch in epochs]
    return {
        "step": [8 * epoch for epoch in epochs],
        "epoch": [float(epoch) for epoch in epochs],
        "train_loss": [None, *(0.7 - 0.5 * value for value in rise[1:])],
        "eval_loss": [0.7 - 0.33 * value for value in rise],
        "eval_metric": [0.5 + (best - 0.5) * value for value in rise],
    }


def as_list(columns: dict[str, list[Any]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def write(directory: Path, forecast: dict[str, Any] | None, results: list[dict[str, Any]]) -> Path:
    if forecast:
        write_json(directory / "forecast.json", forecast)
    for number, result in enumerate(results):
        folder = directory / "train" / f"run{number}"
        folder.mkdir(parents=True)
        write_json(folder / "result.json", result)
    return directory


def full_run(directory: Path, names: list[str] = NAMES) -> Path:
    """A forecast, four real runs and their comparison: the fullest page."""
    offsets = [-0.012, 0.004, 0.041, -0.02]
    results = [result_file(name, i, off=offsets[i]) for i, name in enumerate(names[:4])]
    write(directory, forecast_file(names), results)
    compare(directory)
    return directory


def nulled(content: Any, keep: tuple[str, ...] = ("schema_version", "seed", "peft", "training")) -> Any:
    """The same structure with every measured number null."""
    if isinstance(content, dict):
        return {key: value if key in keep else nulled(value, keep) for key, value in content.items()}
    if isinstance(content, list):
        return [nulled(item, keep) for item in content]
    return None if isinstance(content, int | float) and not isinstance(content, bool) else content
