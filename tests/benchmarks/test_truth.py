"""The mathematics of the baselines, on tiny models and compared with slow computations."""

import json
import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import write_tiny_run
from peft import helpers as peft_helpers
from scipy.optimize import minimize
from scipy.stats import multivariate_normal
from torch.testing import assert_close

from foretune.forecast.starts import Starts
from foretune.kernel import ntk, summary
from foretune.linear import best_strength
from foretune.results import provenance, write_json
from foretune.tangents import collect
from foretune.task import Task, load_task
from foretune.train.finetune import build_peft_model
from foretune.train.loop import run_trainer

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from truth import activations, gradients, probe, rules, selection, transfer, weights
from truth import ntk as kernels
from truth.pareto import knee_point
from truth.registry import PREDICTORS, write_scores

CANDIDATES: list[dict[str, Any]] = [
    {"name": "qv"},
    {"name": "qv-high-rate", "training": {"learning_rate": 3e-3}},
    {"name": "rslora", "peft": {"r": 8, "use_rslora": True}},
    {"name": "last", "peft": {"layers_to_transform": [1]}},
    {"name": "all", "peft": {"target_modules": "all-linear"}, "training": {"learning_rate": 2e-4}},
    {"name": "all-middle-rate", "peft": {"target_modules": "all-linear"}},
]


@pytest.fixture
def task(tmp_path: Path) -> Task:
    return load_task(write_tiny_run(tmp_path / "run", candidates=CANDIDATES))


def ranked(scores: Any) -> list[str]:
    return sorted(scores.candidates, key=lambda name: -scores.candidates[name].rank)


def test_every_predictor_scores_every_candidate_and_writes_it_once(task: Task, tmp_path: Path) -> None:
    task = replace(task, candidates=task.candidates[2:4])
    for name, predictor in PREDICTORS.items():
        if name.startswith("probe-25"):  # works like the shorter probe
            continue
        assert write_scores(task, name, predictor, tmp_path) is not None
        content = json.loads((tmp_path / "scores" / f"{name}.json").read_text(encoding="utf-8"))
        assert list(content["candidates"]) == [candidate.name for candidate in task.candidates]
        for row in content["candidates"].values():
            assert math.isfinite(row["rank"]) and row["seconds"] >= 0
        assert content["shared_seconds"] >= 0 and content["versions"]
    assert write_scores(task, "random", PREDICTORS["random"], tmp_path) is None


def test_rules_rank_candidates_as_they_say(task: Task, tmp_path: Path) -> None:
    assert ranked(rules.parameters(task, tmp_path))[0] in {"all", "all-middle-rate"}
    assert ranked(rules.without_regret(task, tmp_path)) == [
        "all", "all-middle-rate", "qv", "rslora", "qv-high-rate", "last",
    ]  # fmt: skip
    assert ranked(rules.always_rslora(task, tmp_path))[0] == "rslora"
    orders = {tuple(ranked(rules.random_order(seed)(task, tmp_path))) for seed in range(4)}
    assert len(orders) > 1


def test_condition_numbers_agree_with_peft(task: Task, tmp_path: Path) -> None:
    assert weights.condition_number(torch.diag(torch.tensor([4.0, 2.0, 1.0]))) == pytest.approx(4)
    values, _ = weights.condition_numbers(task, tmp_path)
    if not hasattr(peft_helpers, "KappaTuneSelector"):
        pytest.skip("this peft has no KappaTune yet")
    theirs = peft_helpers.KappaTuneSelector(task.model, show_progress=False).get_best_targets()
    assert sorted(values, key=values.__getitem__) == [name for name in theirs if name in values]


def test_overlap_is_one_for_the_modules_that_a_method_selects(task: Task) -> None:
    chosen = [name for name in selection.linear_layers(task) if name.endswith(("query", "value"))]
    scores = selection.by_overlap(task, chosen, 0.0).candidates
    assert (scores["qv"].rank, scores["last"].rank) == (1, 0.5)


def test_block_gradients_are_sums_of_norms(task: Task) -> None:
    model = task.build_model(task.candidates[0].seed).eval()  # it has no dropout
    expected: dict[str, float] = {}
    for row in gradients.sample(task, gradients.PROBE_EXAMPLES):
        named = [(n, p) for n, p in model.named_parameters() if ".layer." in n]
        for (name, _), gradient in zip(
            named, torch.autograd.grad(gradients.loss_of(task, model, [row]), [p for _, p in named]), strict=True
        ):
            key = name.split(".layer.")[1].split(".")[0]
            expected[key] = expected.get(key, 0) + float(gradient.norm())
    assert gradients.block_gradients(task) == pytest.approx(expected, rel=1e-4)


def test_gps_scores_of_adapters(task: Task) -> None:
    matrix = torch.randn(5, 3)
    assert gradients.projection_score(matrix, 3) == pytest.approx(float(matrix.norm()), rel=1e-5)
    scores = gradients.adapter_gradients(task)
    assert scores["qv"] | {"seconds": 0} == scores["qv-high-rate"] | {"seconds": 0}
    one = replace(task, candidates=task.candidates[3:4])  # two adapted layers; the gradients of both A are zero
    row = gradients.adapter_gradients(one)["last"]
    assert row["deviation"] >= row["mean"] > 0


def test_gps_scores_of_frozen_weights(task: Task, tmp_path: Path) -> None:
    values = gradients.weight_gradients(task)
    model = task.build_model(task.candidates[0].seed).eval()  # it has no dropout
    rows = gradients.sample(task, 16)
    loss = gradients.loss_of(task, model, rows[:8]) + gradients.loss_of(task, model, rows[8:])
    name = next(name for name in values if name.endswith("query"))
    (gradient,) = torch.autograd.grad(loss, [model.get_submodule(name).weight])
    assert math.hypot(*values[name]) == pytest.approx(float(gradient.norm()), rel=1e-4)
    scores = gradients.gps_weights(task, tmp_path).candidates
    assert scores["rslora"].rank > scores["qv"].rank == scores["qv-high-rate"].rank


def test_the_knee_is_on_the_front() -> None:
    straight = [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)]
    front, knee = knee_point([*straight, (1.0, 1.0)])
    assert front == straight[::-1] and knee == (0.5, 0.5)
    assert knee_point([(1.0, 2.0)]) == ([(1.0, 2.0)], (1.0, 2.0))


def test_feature_norms() -> None:
    generator = torch.Generator().manual_seed(0)
    orthogonal = torch.linalg.qr(torch.randn(6, 6))[0]
    assert activations.feature_norm(orthogonal, torch.randn(9, 6), generator) == pytest.approx(1, rel=1e-5)
    direction = torch.tensor([3.0, 0.0, 4.0])
    aligned = torch.outer(torch.ones(2), direction)
    assert activations.feature_norm(aligned, direction.repeat(2000, 1), generator) == pytest.approx(2, rel=0.05)


def test_explained_variances() -> None:
    rows = torch.randn(40, 5) @ torch.randn(5, 5) + 3
    sums = activations.Covariance()
    for part in rows.split(13):
        sums.add(part)
    expected = torch.linalg.svdvals((rows - rows.mean(0)).double()).square()
    assert_close(torch.tensor(sums.explained(), dtype=torch.float64), expected / expected.sum(), rtol=1e-4, atol=1e-6)
    line = activations.Covariance()
    line.add(torch.outer(torch.arange(4.0), torch.ones(3)) + 5)
    assert line.explained()[0] == pytest.approx(1)


def test_layer_inputs_have_no_padding(task: Task) -> None:
    layers = selection.linear_layers(task)
    tokens = sum(map(len, task.train["input_ids"]))
    for size in (1, 16):
        batches = list(activations.layer_inputs(task, layers, task.train, size))
        name = next(name for name in layers if name.endswith("query"))
        assert sum(len(batch[name]) for batch in batches) == tokens


@pytest.mark.parametrize(("n", "d"), [(30, 4), (8, 12)])
def test_log_evidence_is_the_maximum_of_the_marginal_likelihood(n: int, d: int) -> None:
    features = torch.randn(n, d, dtype=torch.float64)
    y = features[:, 0] + 0.5 * torch.randn(n, dtype=torch.float64)

    def negative(logs: np.ndarray) -> float:
        covariance = torch.eye(n) / math.exp(logs[1]) + features @ features.T / math.exp(logs[0])
        return -float(multivariate_normal.logpdf(y.numpy(), np.zeros(n), covariance.numpy())) / n

    best = minimize(negative, np.zeros(2), method="Nelder-Mead", options={"xatol": 1e-6, "fatol": 1e-10})
    assert transfer.log_evidence(features, y, steps=2000) == pytest.approx(-best.fun, abs=1e-5)


def test_regularised_h_score() -> None:
    labels = torch.arange(3).repeat(400)
    features = torch.nn.functional.one_hot(labels, 3)[:, :2].double()
    noise = 1e-3 * torch.randn(len(labels), 2, dtype=torch.float64)
    assert transfer.regularised_h_score(features + noise, labels) == pytest.approx(2, abs=0.01)
    assert transfer.regularised_h_score(torch.randn(1200, 2, dtype=torch.float64), labels) < 0.05


def test_shrinkage_equals_the_formula_of_ledoit_and_wolf() -> None:
    features = torch.randn(20, 6, dtype=torch.float64) * torch.arange(1, 7)
    centred = features - features.mean(0)
    covariance = centred.T @ centred / 20
    target = covariance.trace() / 6 * torch.eye(6, dtype=torch.float64)
    noise = sum((torch.outer(x, x) - covariance).square().sum() for x in centred) / 20**2
    assert transfer.shrinkage(features) == pytest.approx(float(noise / (covariance - target).square().sum()))


def test_transferability_scores_are_equal_for_all_candidates(task: Task, tmp_path: Path) -> None:
    for predictor in (transfer.logme, transfer.h_score):
        assert len({score.rank for score in predictor(task, tmp_path).candidates.values()}) == 1


def test_kernel_figures_agree_with_the_kernel(task: Task, tmp_path: Path) -> None:
    figures, _, _ = kernels.figures(task, tmp_path)
    tangents = collect(task, "all-linear")
    candidate = task.candidates[2]
    kernel = ntk(tangents, Starts(task, tangents).draw(candidate, candidate.seed)[0])
    expected = summary(kernel, best_strength(kernel))
    for name in ("trace", "alignment", "effective_dimension"):
        assert figures[candidate.name][name] == pytest.approx(expected[name], rel=1e-2)


def test_kernel_figures_are_read_from_a_forecast(task: Task, tmp_path: Path) -> None:
    rows = [{"name": c.name, "kernel": {"trace": i}, "cost": {"seconds": 2.0}} for i, c in enumerate(task.candidates)]
    content = {"collect": {"seconds": 5.0, "reused": True}, "candidates": rows}
    write_json(tmp_path / "forecast.json", provenance(0, 20.0) | content)
    scores = kernels.ntk_trace(task, tmp_path)
    assert ranked(scores)[0] == "all-middle-rate" and scores.shared_seconds == 20 - 6 * 2 + 5


def test_a_probe_is_the_beginning_of_the_full_run(task: Task, tmp_path: Path) -> None:
    candidate = task.candidates[1]
    probed = probe.run_probe(task, candidate, 0.5, tmp_path / "probe.json", from_start=True)
    model = build_peft_model(task, candidate, candidate.seed)
    overrides = {"eval_strategy": "steps", "eval_steps": 3, "save_strategy": "no", "disable_tqdm": True}
    full, _ = run_trainer(
        model,
        candidate.training_arguments(tmp_path / "full", **overrides, eval_on_start=True),
        task.train,
        task.eval,
        task.compute_metrics,
        collator=task.collator,
        tokenizer=task.tokenizer,
    )
    assert probed["max_steps"] == 12 and [point["step"] for point in probed["curve"]] == [0, 3, 6]
    for point, other in zip(probed["curve"], full.curve, strict=False):
        assert point["eval_loss"] == pytest.approx(other["eval_loss"], rel=1e-6)
    again = probe.run_probe(task, candidate, 0.5, tmp_path / "probe.json", from_start=True)
    assert again["curve"] == probed["curve"]


def test_extrapolation_of_a_loss_curve() -> None:
    assert probe.extrapolate(2 + 3, 2 + 3 * 0.8, 2 + 3 * 0.8**2, 27) == pytest.approx(2 + 3 * 0.8**29)
    assert probe.extrapolate(0.5, 0.5, 0.6, 18) == pytest.approx(0.6)
    assert probe.extrapolate(0.5, 0.6, 0.8, 18) == pytest.approx(0.8)
