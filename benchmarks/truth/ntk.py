"""Candidates ordered by a single number of their NTK."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from truth.predictors import Predictor, Score, Scores, clock, kept
from truth.selection import adapted

from foretune.forecast.starts import Starts
from foretune.kernel import alignment, ntk
from foretune.linear import Modes, best_strength
from foretune.results import read_json
from foretune.tangents import collect
from foretune.task import Task

MOST, FEWEST = 128, 32  # training examples of a kernel if there is no forecast; the paper's script takes 32
SIZE = 512  # rows of a kernel at most, if it has more than ``FEWEST`` examples
Figures = dict[str, float]


def kernel_figures(task: Task) -> dict[str, dict[str, float]]:
    """κ, trace, effective dimension and alignment of the kernel of the first training examples, of every candidate."""
    started = clock()
    count = min(MOST, max(FEWEST, SIZE // max(1, task.num_outputs - 1)), len(task.train))
    part = replace(task, train=task.train.select(range(count)), eval=task.eval.select(range(1)))
    layers = {candidate.name: [module.name for module in adapted(task, candidate)] for candidate in task.candidates}
    tangents = collect(part, sorted(set().union(*layers.values())))
    starts = Starts(part, tangents)
    found: dict[str, dict[str, float]] = {"": {"seconds": clock() - started}}
    seen: dict[str, Figures] = {}
    for candidate in task.candidates:
        started = clock()
        key = json.dumps([candidate.peft_dict(), candidate.seed], sort_keys=True)
        if key not in seen:
            modes = Modes.of(ntk(tangents, starts.draw(candidate, candidate.seed)[0]))
            seen[key] = {
                "condition_number": modes.spectrum.condition_number,
                "trace": modes.spectrum.trace,
                "effective_dimension": modes.spectrum.effective_dimension(best_strength(modes)),
                "alignment": alignment(modes.kernel),
            }
        found[candidate.name] = seen[key] | {"seconds": clock() - started}
    return found


def figures(task: Task, folder: Path) -> tuple[dict[str, Figures], dict[str, float], float]:
    """Figures and seconds of every candidate, and shared seconds.

    If there is a forecast in the folder, they are read from it. Its kernels are of the whole training set, and its wall
    time without the simulations counts as shared. Otherwise they are computed in a pass of their own.
    """
    path = folder / "forecast.json"
    if path.exists():
        forecast = read_json(path, f"delete {path}")
        rows = {row["name"]: row for row in forecast["candidates"]}
        if rows.keys() >= {candidate.name for candidate in task.candidates}:
            shared = forecast["wall_seconds"] - sum(row["cost"]["seconds"] for row in rows.values())
            shared += forecast["collect"]["seconds"] if forecast["collect"]["reused"] else 0.0
            return {name: row["kernel"] for name, row in rows.items()}, dict.fromkeys(rows, 0.0), shared
    found = kept(folder / "figures" / "kernels.json", lambda: kernel_figures(task))[0]
    shared = found.pop("")["seconds"]
    return found, {name: row["seconds"] for name, row in found.items()}, shared


def _from(measure: Callable[[Figures], float], source: str) -> Predictor:
    def predictor(task: Task, folder: Path) -> Scores:
        found, seconds, shared = figures(task, folder)
        names = [candidate.name for candidate in task.candidates]
        return Scores({name: Score(measure(found[name]), seconds=seconds[name]) for name in names}, shared)

    predictor.__doc__ = source
    return predictor


def _inverse_condition_number(row: Figures) -> float:
    return 1 / row["condition_number"] if row["condition_number"] else 0.0  # null in a file where it is infinite


ntk_condition_number = _from(_inverse_condition_number, "A low κ first: the paper's claim, also TE-NAS (2102.11535).")
ntk_trace = _from(lambda row: row["trace"], "A large trace first: outputs move fast, as in NASI (arXiv 2109.00817).")
ntk_effective_dimension = _from(
    lambda row: -row["effective_dimension"],
    "A low effective dimension first: less is left to noise (arXiv 2003.02139), at the λ chosen by leave-one-out.",
)
ntk_alignment = _from(
    lambda row: row["alignment"], "A high alignment of kernel and targets first (Cortes et al., JMLR 2012)."
)
