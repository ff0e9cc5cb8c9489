"""Find the real runs in a run directory that a forecast can be compared with."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.results import differences, read_json
from foretune.task.candidate import configuration

LINEARISED = "it is a linearised run, not a real one"
UNKNOWN = "it is not a candidate of the forecast"


@dataclass
class RealRuns:
    """The real runs of one candidate of a forecast.

    Attributes:
        candidate: The candidate's entry in ``forecast.json``.
        results: The ``result.json`` of every seed that was forecast.
        other_seeds: The ``result.json`` of every seed that was not forecast.
    """

    candidate: dict[str, Any]
    results: list[dict[str, Any]] = field(default_factory=list)
    other_seeds: list[dict[str, Any]] = field(default_factory=list)

    @property
    def seeds(self) -> list[int]:
        """The seeds that were forecast; empty if the forecast does not name them."""
        return [seed for seed in self.candidate["predicted"].get("seeds") or [] if seed is not None]

    @property
    def all_seeds(self) -> list[dict[str, Any]]:
        """The results of all seeds."""
        return [*self.results, *self.other_seeds]


def result_paths(directory: Path) -> list[Path]:
    """List the result files of a run directory; those in ``seed-*`` folders come last."""
    return [*sorted(directory.glob("train/*/result.json")), *sorted(directory.glob("train/*/seed-*/result.json"))]


def real_runs(directory: Path, forecast: dict[str, Any]) -> tuple[list[RealRuns], list[dict[str, Any]]]:
    """Find the real runs that a forecast can be compared with.

    These are runs of the same task (data, labels and model, by content), with the same settings and seed.

    Args:
        directory: The run directory.
        forecast: The content of its ``forecast.json``.

    Returns:
        The candidates that have such a run, in the forecast's order; and for every other result a dictionary with
        ``path``, ``name`` and ``reason``.
    """
    runs = {entry["name"]: RealRuns(entry) for entry in forecast["candidates"]}
    identity = (forecast.get("task") or {}).get("identity")
    skipped = []
    for path in result_paths(directory):
        where = str(path.relative_to(directory))
        try:
            result = read_json(path, "")
        except InputError as error:
            skipped.append({"path": where, "name": path.parent.name, "reason": error.found})
            continue
        name = result["candidate"]
        reason = _why_not(result, runs.get(name), identity)
        if reason:
            skipped.append({"path": where, "name": name, "reason": reason})
        else:
            run = runs[name]
            (run.results if not run.seeds or result["seed"] in run.seeds else run.other_seeds).append(result)
    for run in runs.values():
        if run.other_seeds and not run.results:
            trained = ", ".join(str(result["seed"]) for result in run.other_seeds)
            wanted = ", ".join(map(str, run.seeds))
            reason = f"it was trained from seed {trained} and forecast for seed {wanted}"
            skipped.append({"path": "train", "name": run.candidate["name"], "reason": reason})
    return [run for run in runs.values() if run.results], skipped


def by_reason(skipped: Iterable[Mapping[str, Any]]) -> list[str]:
    """Sentences such as ``a, b: the reason``, one for every reason for which results are skipped."""
    names: dict[str, list[str]] = {}
    for entry in skipped:
        names.setdefault(entry["reason"], []).append(entry["name"])
    return [f"{', '.join(dict.fromkeys(same))}: {reason}" for reason, same in names.items()]


def _why_not(result: dict[str, Any], run: RealRuns | None, identity: str | None) -> str:
    """The reason why a forecast cannot be compared with a result; empty if it can."""
    if result.get("linearised"):
        return LINEARISED
    if run is None:
        return UNKNOWN
    if identity and result.get("task") and result["task"] != identity:
        return "stale: it was trained on other data, labels or another model than the forecast; train it again"
    changes = stale(result, run.candidate)
    return f"stale: {changes}; train it again, or forecast it again" if changes else ""


def _shown(value: Any) -> str:
    return "not set" if value is None else repr(value)


def stale(result: dict[str, Any], candidate: dict[str, Any]) -> str:
    """Describe where the settings of a result differ from those of a candidate.

    Args:
        result: The content of a ``result.json``.
        candidate: An entry of ``forecast.json``.

    Returns:
        Up to three differences in words, other than the seed; empty if there are none.
    """
    changes = [
        f"{key} is {_shown(trained)}, in the forecast {_shown(planned)}"
        for key, trained, planned in differences(configuration(result), configuration(candidate))
        if key != "training.seed"
    ]
    names = (result.get("final") or {}).get("metric_name"), candidate["predicted"].get("metric_name")
    if None not in names and names[0] != names[1]:
        changes.append(f"the metric is {names[0]!r}, in the forecast {names[1]!r}")
    return "; ".join(changes[:3]) + (" …" if len(changes) > 3 else "")
