"""Predict which checkpoint a run keeps with ``load_best_model_at_end``, by the rules of ``Trainer``."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foretune.train.arguments import METRIC
from foretune.train.curve import Point


def kept_point(curve: Sequence[Point], given: Mapping[str, Any]) -> int:
    """Return the index of the point whose model is kept at the end: the last one, or the best one that is saved.

    Args:
        curve: The curve of the run, from the first step to the last.
        given: The keys of a ``training`` section.

    Returns:
        The index into ``curve``.
    """
    last = len(curve) - 1
    if not given.get("load_best_model_at_end"):
        return last
    by_loss = str(given.get("metric_for_best_model") or "loss").endswith("loss")
    name = "eval_loss" if by_loss else METRIC
    greater = given.get("greater_is_better")
    sign = 1.0 if (not by_loss if greater is None else greater) else -1.0
    best, best_value, kept, saved = 0, -math.inf, last, set()
    for number, point in enumerate(curve):
        value = sign * float(point[name])  # type: ignore[literal-required]
        if point["step"] == 0:  # the evaluation before training, whose model is never saved
            continue
        if value > best_value:
            best, best_value = number, value
        if _is_saved(point["step"], curve[-1]["step"], given, number == best):
            saved.add(number)
            if best in saved:
                kept = best
    return kept


def _is_saved(step: int, last: int, given: Mapping[str, Any], is_best: bool) -> bool:
    """Whether ``Trainer`` saves a checkpoint after a step with an evaluation."""
    strategy = str(given.get("save_strategy", "epoch"))
    if strategy == "best":
        return is_best
    if strategy != "steps":
        return True
    interval = float(given.get("save_steps", 500))
    interval = math.ceil(interval * last) if interval < 1 else int(interval)
    return step % interval == 0 or step == last
