"""Transferability of the frozen features: LogME and H-score.

Both judge the features that the pretrained model gives to a new head, so all candidates of a task get the same score.
Their authors choose models with them. We know of nobody who chooses layers to adapt with them, so they are not computed
for the layers of a candidate. Features are the inputs of the head on the training set.
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from truth.predictors import Scores, kept, scored

from foretune.kernel.kernel import targets
from foretune.tangents import batches
from foretune.tangents.head import features_of, find_head, head_names
from foretune.task import Task

Features = Float[Tensor, "n d"]


def head_features(task: Task) -> tuple[Features, Tensor]:
    """The inputs of the head for the training examples, in float64, and their labels."""
    seen = list(batches(task.model, task, task.train))
    head = find_head(task.model, head_names(task.model), seen[0])
    features = torch.cat([features_of(task.model, head, batch) for batch in seen]).double()
    return features, torch.cat([batch["labels"] for batch in seen])


def log_evidence(features: Features, y: Float[Tensor, " n"], steps: int = 100) -> float:
    """``max_{α,β} log N(y; 0, I/β + F F'/α)/n``: the evidence of a linear model, by MacKay's fixed point."""
    n, d = features.shape
    u, s, _ = torch.linalg.svd(features, full_matrices=False)
    sigma, x2 = s.square(), (u.T @ y).square()
    rest = float(y.square().sum() - x2.sum())
    alpha = beta = 1.0
    for _ in range(steps):
        ratio = alpha / beta
        gamma = float((sigma / (sigma + ratio)).sum())
        norm = float((sigma * x2 / (sigma + ratio).square()).sum())
        residual = float((x2 * (ratio / (sigma + ratio)).square()).sum()) + rest
        alpha, beta = gamma / (norm + 1e-12), (n - gamma) / (residual + 1e-12)
        if abs(alpha / beta - ratio) <= 1e-6 * ratio:
            break
    terms = torch.tensor([alpha, beta, 2 * torch.pi], dtype=torch.float64).log()
    logs = d * terms[0] + n * terms[1] - n * terms[2]
    determinant = (alpha + beta * sigma).log().sum() + (d - len(sigma)) * terms[0]
    return float(logs - determinant - beta * residual - alpha * norm) / (2 * n)


def shrinkage(features: Features) -> float:
    """Ledoit and Wolf's weight of a multiple of the identity in the estimate of a covariance (2004)."""
    centred = features - features.mean(0)
    n, d = centred.shape
    covariance = centred.T @ centred / n
    scale = float(covariance.trace()) / d
    distance = float(covariance.square().sum()) - d * scale**2
    noise = float(centred.square().sum(1).square().sum()) / n**2 - float(covariance.square().sum()) / n
    return min(max(noise / distance, 0.0), 1.0) if distance > 0 else 1.0


def regularised_h_score(features: Features, labels: Int[Tensor, " n"]) -> float:
    """``(1 - α) tr(cov_α(f)^{-1} cov(E[f|y]))`` with the shrunk covariance ``(1 - α) cov(f) + α tr(cov f)/d I``."""
    alpha = shrinkage(features)
    centred = features - features.mean(0)
    n, d = centred.shape
    covariance = centred.T @ centred / n
    shrunk = (1 - alpha) * covariance + alpha * covariance.trace() / d * torch.eye(d, dtype=features.dtype)
    means = torch.zeros_like(centred)
    for label in labels.unique():
        means[labels == label] = centred[labels == label].mean(0)
    between = means.T @ means / n
    return (1 - alpha) * float((torch.linalg.pinv(shrunk, hermitian=True) @ between).trace())


def measures(task: Task) -> dict[str, float]:
    """LogME, and the H-score where there are classes, else 0."""
    features, labels = head_features(task)
    columns = targets(labels, task.loss, task.num_outputs).T
    evidence = sum(log_evidence(features, column) for column in columns) / len(columns)
    return {
        "logme": evidence,
        "h-score": regularised_h_score(features, labels) if task.loss == "cross_entropy" else 0.0,
    }


def _same_for_all(task: Task, folder: Path, name: str) -> Scores:
    found, seconds = kept(folder / "figures" / "transferability.json", lambda: measures(task))
    return scored(task, lambda _: found[name], seconds)


def logme(task: Task, folder: Path) -> Scores:
    """LogME: the mean over outputs of the evidence per example.

    You et al. (ICML 2021; arXiv 2110.10545, ``LogME.py`` of github.com/thuml/LogME), on mean-pooled features as in
    arXiv 2210.11255. The fixed point is iterated to convergence. If there are fewer examples than features, eigenvalues
    of zero count as well; the package's faster routine leaves them out.
    """
    return _same_for_all(task, folder, "logme")


def h_score(task: Task, folder: Path) -> Scores:
    """H-score (Bao et al., ICIP 2019) with the shrunk covariance of Ibrahim et al. (arXiv 2110.06893).

    The plain H-score says nothing if there are fewer examples than features. It needs classes: 0 for regression.
    """
    return _same_for_all(task, folder, "h-score")
