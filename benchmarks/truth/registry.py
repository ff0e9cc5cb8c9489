"""All predictors by name, and the files of their scores."""

import dataclasses
import time
from pathlib import Path

from truth.activations import eva, eva_total, plop, plop_mean
from truth.fidelities import kernel_leave_one_out, kernel_ridge, linear_model, refreshed, tangents_alone
from truth.gradients import aletheia, aletheia_mean, gps, gps_deviation, gps_mean, gps_weights
from truth.ntk import ntk_alignment, ntk_condition_number, ntk_effective_dimension, ntk_trace
from truth.predictors import Predictor, Scores
from truth.probe import extrapolated_probe, probe
from truth.rules import always_rslora, parameters, random_order, without_regret
from truth.transfer import h_score, logme
from truth.weights import kappatune, kappatune_mean

from foretune.results import provenance, write_json
from foretune.task import Task

PREDICTORS: dict[str, Predictor] = {
    "random": random_order(0),
    "parameters": parameters,
    "without-regret": without_regret,
    "always-rslora": always_rslora,
    "kappatune": kappatune,
    "kappatune-mean": kappatune_mean,
    "aletheia": aletheia,
    "aletheia-mean": aletheia_mean,
    "gps": gps,
    "gps-mean": gps_mean,
    "gps-deviation": gps_deviation,
    "gps-weights": gps_weights,
    "plop": plop,
    "plop-mean": plop_mean,
    "eva": eva,
    "eva-total": eva_total,
    "logme": logme,
    "h-score": h_score,
    "ntk-condition-number": ntk_condition_number,
    "ntk-trace": ntk_trace,
    "ntk-effective-dimension": ntk_effective_dimension,
    "ntk-alignment": ntk_alignment,
    "kernel-leave-one-out": kernel_leave_one_out,
    "kernel-ridge": kernel_ridge,
    "linear-model": linear_model,
    "tangents-alone": tangents_alone,
    "refreshed": refreshed,
    "probe-10": probe(0.1),
    "probe-10-extrapolated": extrapolated_probe(0.1),
    "probe-25": probe(0.25),
    "probe-25-extrapolated": extrapolated_probe(0.25),
}
SEEDED = {
    name for name in PREDICTORS if name.startswith("probe")
}  # these begin a run, so they are asked about every seed


def write_scores(task: Task, name: str, predictor: Predictor, folder: Path) -> Scores | None:
    """Run a predictor on a task and write ``scores/<name>.json``; None if that file exists."""
    path = folder / "scores" / f"{name}.json"
    if path.exists():
        return None
    path.parent.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    scores = predictor(task, folder)
    result = provenance(task.candidates[0].seed, time.perf_counter() - started)
    write_json(path, result | {"task": task.name, "predictor": name} | dataclasses.asdict(scores))
    return scores
