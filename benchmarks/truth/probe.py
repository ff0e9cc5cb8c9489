"""The short probe, which people use today: really train a part of the steps, evaluate, and extrapolate.

The run is the full one with its schedule, batches and seed, and it is stopped early. It is evaluated at its start, half
way and at its end. The start is evaluated once for a task, because adapters start as zero functions.
"""

import math
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from truth.predictors import Predictor, Score, Scores, clock

from foretune.results import provenance, read_json, write_json
from foretune.task import Candidate, Task
from foretune.train.curve import Point
from foretune.train.finetune import build_peft_model
from foretune.train.loop import run_trainer

OVERRIDES: dict[str, Any] = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "logging_strategy": "no",
    "disable_tqdm": True,
}


class StopEarly(TrainerCallback):
    """Ends a run after a share of its steps, and evaluates it once half way there.

    Args:
        share: Of the run's steps.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.half = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object
    ) -> None:
        """Read how many steps the run would take."""
        self.half = max(1, round(self.share * state.max_steps / 2))

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: object) -> None:
        """Evaluate half way, stop at the end."""
        control.should_evaluate = state.global_step == self.half
        control.should_training_stop = state.global_step >= 2 * self.half


def run_probe(task: Task, candidate: Candidate, share: float, path: Path, *, from_start: bool) -> dict[str, Any]:
    """A candidate's probe, kept in a file: its curve, the steps of the full run, and the seconds of everything."""
    if path.exists():
        return read_json(path, f"delete {path} to make it again")
    path.parent.mkdir(parents=True, exist_ok=True)
    started, wall = clock(), time.perf_counter()
    stop = StopEarly(share)
    scratch = path.with_suffix(".trainer")
    run, trainer = run_trainer(
        build_peft_model(task, candidate, candidate.seed),
        candidate.training_arguments(scratch, **OVERRIDES | {"eval_on_start": from_start}),
        task.train,
        task.eval,
        task.compute_metrics,
        collator=task.collator,
        tokenizer=task.tokenizer,
        callbacks=[stop],
        proximal=candidate.proximal,
    )
    shutil.rmtree(scratch, ignore_errors=True)
    seconds = clock() - started
    result = provenance(candidate.seed, time.perf_counter() - wall, trainer.args.device)
    result |= {
        "seconds": seconds,
        "candidate": candidate.name,
        "curve": run.curve,
        "max_steps": trainer.state.max_steps,
    }
    write_json(path, result)
    return result


def extrapolate(start: float, half: float, end: float, halves: float) -> float:
    """Continue the exponential ``a + b q^t`` through three equally spaced points by so many halves of the probe.

    ``v(2 + m) = v(2) + (v(2) - v(1)) (q + ... + q^m)`` with ``q = (v(2) - v(1))/(v(1) - v(0))``. If the
    points do not approach a limit (q is not between 0 and 1), the last value is returned.

    >>> extrapolate(1.0, 0.5, 0.25, 1)
    0.125
    """
    first, second = half - start, end - half
    ratio = second / first if first != 0 else math.nan
    if not 0 < ratio < 1:
        return end
    return end + second * ratio * (1 - ratio**halves) / (1 - ratio)


def _probes(task: Task, folder: Path, share: float) -> tuple[dict[str, dict[str, Any]], Point]:
    place = folder / f"probe-{round(100 * share)}"
    probes = {
        candidate.name: run_probe(task, candidate, share, place / f"{candidate.name}.json", from_start=number == 0)
        for number, candidate in enumerate(task.candidates)
    }
    return probes, probes[task.candidates[0].name]["curve"][0]


def probe(share: float) -> Predictor:
    """The metric after a share of the steps, as a prediction of the final one."""

    def predictor(task: Task, folder: Path) -> Scores:
        scores = {}
        for name, found in _probes(task, folder, share)[0].items():
            last = found["curve"][-1]
            scores[name] = Score(last["eval_metric"], last["eval_metric"], last["eval_loss"], found["seconds"])
        return Scores(scores)

    return predictor


def extrapolated_probe(share: float) -> Predictor:
    """Metric and loss at the end of the run, from an exponential through the probe's three evaluations."""

    def predictor(task: Task, folder: Path) -> Scores:
        probes, start = _probes(task, folder, share)
        low = 0.0 if task.metric_name == "accuracy" else -1.0
        scores = {}
        for name, found in probes.items():
            half, end = found["curve"][-2:]
            halves = (found["max_steps"] - end["step"]) / half["step"]
            metric, loss = (
                extrapolate(start[key], half[key], end[key], halves) for key in ("eval_metric", "eval_loss")
            )
            metric, loss = min(max(metric, low), 1.0), max(loss, 0.0)
            scores[name] = Score(metric, metric, loss, seconds=found["seconds"])
        return Scores(scores)

    return predictor
