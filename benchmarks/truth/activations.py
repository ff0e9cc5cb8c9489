"""Methods that look at the inputs of layers: PLoP's feature norms and EVA's explained variance. Neither sees labels."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn
from truth.predictors import Scores, kept, scored
from truth.selection import adapted, by_mean, by_overlap, kind_of, linear_layers

from foretune.tangents.head import outputs_of
from foretune.task import Candidate, Task

PLOP_EXAMPLES, PLOP_BATCH = 100, 8  # of ``main.py``
PLOP_KINDS = 3  # module types that its experiments adapt
EVA_BATCH = 32
MAX_COMPONENTS = 64  # principal components of which the ratios are kept


def layer_inputs(
    task: Task, layers: Mapping[str, nn.Module], rows: Dataset, batch_size: int
) -> Iterator[dict[str, Float[Tensor, "tokens i"]]]:
    """The inputs of every layer in eval mode, batch by batch: tokens without padding, or one row per example."""
    entered: dict[str, Tensor] = {}

    def keep(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        entered[name] = args[0].detach()

    handles = [layer.register_forward_pre_hook(partial(keep, name)) for name, layer in layers.items()]
    try:
        for start in range(0, len(rows), batch_size):
            batch = task.collator([rows[i] for i in range(start, min(start + batch_size, len(rows)))])
            mask = batch["attention_mask"].bool()
            with torch.no_grad():
                outputs_of(task.model, batch)
            yield {name: value[mask] if value.dim() == 3 else value for name, value in entered.items()}
    finally:
        for handle in handles:
            handle.remove()


def feature_norm(
    weight: Float[Tensor, "o i"], inputs: Float[Tensor, "tokens i"], generator: torch.Generator | None = None
) -> float:
    """NFN: the mean of ``‖W a‖/‖a‖`` over a layer's inputs a, divided by its mean over as many Gaussian vectors."""
    random = torch.randn(inputs.shape, generator=generator, dtype=inputs.dtype)
    actual, chance = ((nn.functional.normalize(rows, dim=1) @ weight.T).norm(dim=1).mean() for rows in (inputs, random))
    return float(actual / chance)


def feature_norms(task: Task) -> dict[str, float]:
    """NFN of every linear layer but the head's, as a mean over batches."""
    layers = linear_layers(task)
    generator = torch.Generator().manual_seed(0)
    rows = task.train.select(range(min(PLOP_EXAMPLES, len(task.train))))
    batches = [
        {name: feature_norm(layers[name].weight.detach(), found, generator) for name, found in inputs.items()}
        for inputs in layer_inputs(task, layers, rows, PLOP_BATCH)
    ]
    return {name: sum(batch[name] for batch in batches) / len(batches) for name in layers}


def kind_norms(task: Task, folder: Path) -> tuple[dict[str, float], float]:
    """NFN of every module type, as a mean over its modules, and the seconds that it took."""
    norms, seconds = kept(folder / "figures" / "feature-norms.json", lambda: feature_norms(task))
    kinds: dict[str, list[float]] = {}
    for name, value in norms.items():
        kinds.setdefault(kind_of(name), []).append(value)
    return {kind: sum(values) / len(values) for kind, values in kinds.items()}, seconds


def plop(task: Task, folder: Path) -> Scores:
    """Overlap with all modules of the three types whose NFN is lowest.

    PLoP (arXiv 2506.20629; ``main.py`` and ``src/metrics.py`` of github.com/soufiane001/plop) holds that a type whose
    outputs are large for the task's inputs is already aligned with them. As in the authors' code there are 100 examples
    in batches of 8. Unlike there, padding is left out.
    """
    norms, seconds = kind_norms(task, folder)
    kinds = sorted(norms, key=norms.__getitem__)[:PLOP_KINDS]
    return by_overlap(task, [name for name in linear_layers(task) if kind_of(name) in kinds], seconds)


def plop_mean(task: Task, folder: Path) -> Scores:
    """Mean over a candidate's layers of minus the NFN of their type."""
    norms, seconds = kind_norms(task, folder)
    return by_mean(task, {name: -norms[kind_of(name)] for name in linear_layers(task)}, seconds)


class Covariance:
    """The covariance of rows that are added batch by batch, in float64."""

    def __init__(self) -> None:
        self.count = 0
        self.total: Any = 0.0
        self.squares: Any = 0.0

    def add(self, rows: Float[Tensor, "n i"]) -> None:
        """Add more rows."""
        self.count += len(rows)
        self.total = self.total + rows.double().sum(0)
        self.squares = self.squares + (rows.T @ rows).double()

    def explained(self) -> list[float]:
        """The share of the variance along each principal component, largest first."""
        centred = self.squares - torch.outer(self.total, self.total) / self.count
        values = torch.linalg.eigvalsh(centred).flip(0).clamp(min=0)
        return (values / values.sum()).tolist()


def explained_variances(task: Task) -> dict[str, list[float]]:
    """Shares of the principal components of the inputs of every linear layer but the head's, over all training rows."""
    layers = linear_layers(task)
    sums = {name: Covariance() for name in layers}
    for inputs in layer_inputs(task, layers, task.train, EVA_BATCH):
        for name, rows in inputs.items():
            sums[name].add(rows)
    return {name: each.explained()[:MAX_COMPONENTS] for name, each in sums.items()}


def _eva(task: Task, folder: Path, *, mean: bool) -> Scores:
    shares, seconds = kept(folder / "figures" / "explained-variances.json", lambda: explained_variances(task))

    def rank(candidate: Candidate) -> float:
        values = [sum(shares[module.name][: module.rank]) for module in adapted(task, candidate)]
        return sum(values) / (len(values) if mean else 1)

    return scored(task, rank, seconds)


def eva(task: Task, folder: Path) -> Scores:
    """Mean over a candidate's layers of the variance of their inputs that r principal components explain.

    EVA (arXiv 2410.07170; ``peft/tuners/lora/eva.py``) gives higher ranks to layers where they explain more variance.
    The components are those of all training tokens, to which the incremental SVD of the package converges.
    """
    return _eva(task, folder, mean=True)


def eva_total(task: Task, folder: Path) -> Scores:
    """The sum over a candidate's layers instead of the mean, which EVA maximises under a budget of ranks."""
    return _eva(task, folder, mean=False)
