"""Methods that look at gradients before training: Aletheia-LoRA's probe of blocks and EvoLoRA's GPS of adapters."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import set_seed
from truth.pareto import knee_point
from truth.predictors import Score, Scores, clock, kept, scored
from truth.selection import adapted, block_of, by_mean, by_overlap, linear_layers

from foretune.task import Candidate, Task
from foretune.train.finetune import build_peft_model

SEED = 42
PROBE_EXAMPLES = 5  # Aletheia's probe: five batches of one example
TOP = 0.5  # share of the blocks that Aletheia chooses
GPS_BATCHES = 2  # calibration batches of GPS
MAX_RANK = 64  # singular values that are kept


def sample(task: Task, count: int) -> list[dict[str, Any]]:
    """Training examples in a fixed random order."""
    order = torch.randperm(len(task.train), generator=torch.Generator().manual_seed(SEED))
    return [task.train[i] for i in order[:count].tolist()]


def loss_of(task: Task, model: Any, rows: list[dict[str, Any]]) -> Tensor:
    """The loss that training minimises, for a batch of rows."""
    return model(**{name: value.to(model.device) for name, value in task.collator(rows).items()}).loss


def block_gradients(task: Task) -> dict[str, float]:
    r"""``\sum_{x} \sum_{p} \lVert \nabla_p L(x) \rVert`` of every transformer block.

    The sums are over examples x, one at a time, and over the block's parameters p (weights, biases and norms); they are
    not divided by the number of parameters. As in the authors' code, gradients are those of the pretrained parameters
    without adapters, with the new head of the first candidate's seed and with dropout.
    """
    model = task.build_model(task.candidates[0].seed).train()
    blocks = {name: block_of(name) for name, _ in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(blocks[name] is not None)
    norms: dict[str, float] = {}
    set_seed(SEED)
    for row in sample(task, PROBE_EXAMPLES):
        model.zero_grad()
        loss_of(task, model, [row]).backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                key = str(blocks[name])
                norms[key] = norms.get(key, 0.0) + float(parameter.grad.norm())
    return norms


def aletheia(task: Task, folder: Path) -> Scores:
    """Overlap with all linear layers of the half of the blocks whose gradients are largest.

    Aletheia-LoRA (arXiv 2604.15351; PyPI ``aletheia-lora`` 0.1.2, ``probe.py`` and ``selection.py``). Its authors claim
    faster training at about the same quality. Tested here is whether larger gradients also mean better runs.
    """
    norms, seconds = kept(folder / "figures" / "block-gradients.json", lambda: block_gradients(task))
    best = sorted(norms, key=norms.__getitem__, reverse=True)[: max(1, int(len(norms) * TOP))]
    chosen = [name for name in linear_layers(task) if str(block_of(name)) in best]
    return by_overlap(task, chosen, seconds)


def aletheia_mean(task: Task, folder: Path) -> Scores:
    """Mean over a candidate's layers of the gradient norm of their blocks, 0 for a layer outside them."""
    norms, seconds = kept(folder / "figures" / "block-gradients.json", lambda: block_gradients(task))
    return by_mean(task, {name: norms.get(str(block_of(name)), 0.0) for name in linear_layers(task)}, seconds)


def projection_score(gradient: Float[Tensor, "a b"], rank: int) -> float:
    """``GPS(G, r) = sqrt(sum_{i<=r} σ_i²)``: the norm of the best approximation of rank r.

    >>> projection_score(torch.diag(torch.tensor([3.0, 4.0, 1.0])), 2)
    5.0
    """
    return float(torch.linalg.svdvals(gradient.float())[:rank].square().sum().sqrt())


def summarise(scores: Iterable[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the population) of layers' scores."""
    values = torch.tensor(list(scores), dtype=torch.float64)
    return float(values.mean()), float(values.std(correction=0))


def adapter_gradients(task: Task) -> dict[str, dict[str, float]]:
    """Mean and deviation of GPS over the factors A and B of all adapted layers, and the trainable parameters.

    Gradients are those of the summed loss of two training batches, with the candidate's own adapters and head before
    training and with dropout. The gradients of A are zero because B is zero; they count all the same, as in the
    package. Candidates that differ only in training arguments share their figures, and the cost counts for the first.
    """
    seen: dict[str, dict[str, float]] = {}
    return {candidate.name: _adapter_gradients(task, candidate, seen) for candidate in task.candidates}


def _adapter_gradients(task: Task, candidate: Candidate, seen: dict[str, dict[str, float]]) -> dict[str, float]:
    started = clock()
    size = int(candidate.training.get("per_device_train_batch_size", 8))
    key = json.dumps([candidate.peft_dict(), candidate.seed, size], sort_keys=True)
    if key not in seen:
        model = build_peft_model(task, candidate, candidate.seed).train()
        set_seed(SEED)
        rows = sample(task, GPS_BATCHES * size)
        for start in range(0, len(rows), size):
            loss_of(task, model, rows[start : start + size]).backward()
        gradients = [p.grad for name, p in model.named_parameters() if "lora_" in name and p.grad is not None]
        mean, deviation = summarise(projection_score(gradient, candidate.peft.r) for gradient in gradients)
        count = sum(p.numel() for p in model.parameters() if p.requires_grad)
        seen[key] = {"mean": mean, "deviation": deviation, "parameters": count}
    return seen[key] | {"seconds": clock() - started}


def _gps(task: Task, folder: Path) -> dict[str, dict[str, float]]:
    return kept(folder / "figures" / "adapter-gradients.json", lambda: adapter_gradients(task))[0]


def gps_mean(task: Task, folder: Path) -> Scores:
    """A larger mean GPS first: the first objective of EvoLoRA, see ``gps``."""
    return Scores({name: Score(row["mean"], seconds=row["seconds"]) for name, row in _gps(task, folder).items()})


def gps_deviation(task: Task, folder: Path) -> Scores:
    """A smaller deviation of GPS over the layers first: the second objective of EvoLoRA, see ``gps``."""
    return Scores({name: Score(-row["deviation"], seconds=row["seconds"]) for name, row in _gps(task, folder).items()})


def gps(task: Task, folder: Path) -> Scores:
    """The knee of the Pareto front first, then the front, then the rest.

    EvoLoRA (Wu, Neri and Feng, 2026, doi 10.1142/S0129065726500255; PyPI ``evolo-moead`` 0.1.0, ``gps_metric.py``,
    ``hf_evaluator.py`` and ``geometry.py``) maximises the mean of GPS, minimises its deviation and the number of
    trainable parameters, and recommends the knee. The candidates take the place of those that its evolutionary search
    would visit.
    """
    figures = _gps(task, folder)
    objectives = {name: (-row["mean"], row["deviation"], row["parameters"]) for name, row in figures.items()}
    front, knee = knee_point(list(objectives.values()))
    return Scores(
        {
            name: Score(float(point in front) + float(point == knee), seconds=figures[name]["seconds"])
            for name, point in objectives.items()
        }
    )


def weight_gradients(task: Task) -> dict[str, list[float]]:
    """Singular values, largest first, of the gradient in every frozen weight but the head's, without adapters.

    The loss is the sum over two training batches, with the new head of the first candidate's seed and with dropout.
    """
    first = task.candidates[0]
    size = int(first.training.get("per_device_train_batch_size", 8))
    model = task.build_model(first.seed).train().requires_grad_(False)
    layers = {name: model.get_submodule(name).requires_grad_() for name in linear_layers(task)}
    set_seed(SEED)
    rows = sample(task, GPS_BATCHES * size)
    for start in range(0, len(rows), size):
        loss_of(task, model, rows[start : start + size]).backward()
    return {name: torch.linalg.svdvals(layer.weight.grad)[:MAX_RANK].tolist() for name, layer in layers.items()}


def gps_weights(task: Task, folder: Path) -> Scores:
    """A larger mean over a candidate's layers of the GPS of their frozen weights' gradients, at the candidate's rank.

    This is the score as the paper derives it: the part of a layer's gradient that an adapter of rank r can follow. The
    package computes it from the gradients of the adapters, whose rank is at most r, so there it is only their norm.
    """
    values, seconds = kept(folder / "figures" / "weight-gradients.json", lambda: weight_gradients(task))

    def rank(candidate: Candidate) -> float:
        layers = adapted(task, candidate)
        return sum(math.hypot(*values[layer.name][: layer.rank]) for layer in layers) / len(layers)

    return scored(task, rank, seconds)
