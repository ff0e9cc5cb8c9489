"""The interface of all predictors: a score for every candidate of a task, before any of them is trained."""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foretune.results import provenance, read_json, write_json
from foretune.task import Candidate, Task


@dataclass(frozen=True)
class Score:
    """What a predictor says of a candidate.

    Attributes:
        rank: Candidates with a higher rank come first.
        metric: The predicted final metric, if the predictor has one.
        loss: The predicted final evaluation loss, if the predictor has one.
        seconds: Cost of this candidate's score, without what all candidates share.
    """

    rank: float
    metric: float | None = None
    loss: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class Scores:
    """The scores of a task's candidates by name, and the seconds of what they share, such as one pass for all."""

    candidates: dict[str, Score]
    shared_seconds: float = 0.0


clock = time.process_time  # of all threads; a busy machine does not change it
Predictor = Callable[[Task, Path], Scores]  # of a task and a folder for the predictor's files


def timed(task: Task, score: Callable[[Candidate], Score], shared_seconds: float = 0.0) -> Scores:
    """Score every candidate and measure the seconds that it took."""
    scores = {}
    for candidate in task.candidates:
        started = clock()
        found = score(candidate)
        scores[candidate.name] = replace(found, seconds=clock() - started)
    return Scores(scores, shared_seconds)


def scored(task: Task, rank: Callable[[Candidate], float], shared_seconds: float = 0.0) -> Scores:
    """Scores that only order candidates."""
    return timed(task, lambda candidate: Score(float(rank(candidate))), shared_seconds)


def kept(path: Path, work: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], float]:
    """Figures and the seconds that they took, read from a file if it exists.

    Several predictors may use the same figures. They are computed once, and their cost counts for all of them.
    """
    if not path.exists():
        started, wall = clock(), time.perf_counter()
        figures = work()
        seconds = clock() - started
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, provenance(0, time.perf_counter() - wall) | {"seconds": seconds, "figures": figures})
    found = read_json(path, f"delete {path} to make it again")
    return found["figures"], float(found["seconds"])
