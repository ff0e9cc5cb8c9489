"""Imports the package's public names when they are first used."""

from importlib import import_module
from typing import Any

PLACES = {
    "foretune.api": ("Kernel", "Tangents", "collect", "search_space"),
    "foretune.forecast.compare": ("compare",),
    "foretune.forecast.expectation": ("Forecast",),
    "foretune.forecast.search": ("Recommendation",),
    "foretune.linear": ("gradient_descent", "gradient_flow", "linearise", "logistic", "ridge"),
    "foretune.tangents": ("layer_rule",),
    "foretune.task": ("Candidate", "Task", "load_task"),
    "foretune.task.space": ("Space",),
    "foretune.train": ("Certificate", "GapRecorder", "ProximalAdamW", "certify", "load_adapter", "proximal"),
}
PLACE_OF = {name: place for place, names in PLACES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name == "testing":
        return import_module("foretune.testing")
    if name not in PLACE_OF:
        raise AttributeError(f"module 'foretune' has no attribute {name!r}")
    return getattr(import_module(PLACE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({"InputError", "__version__", "testing", *PLACE_OF})
