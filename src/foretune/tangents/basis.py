"""The output basis: the few directions of the head's features along which tangents are taken (theory.md section 6)."""

import numpy as np
import torch
from jaxtyping import Float
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler
from torch import Tensor

MAX_DIRECTIONS = 16


def centring(num_outputs: int) -> Float[Tensor, "k c"]:
    """Orthonormal rows spanning the centred outputs (k = c - 1): softmax does not see the all-ones direction.

    A single output (regression) is its own direction.
    """
    if num_outputs == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    eye = torch.eye(num_outputs, dtype=torch.float64)
    return torch.linalg.svd(eye - 1 / num_outputs)[2][: num_outputs - 1]


def task_directions(features: Float[Tensor, "n d"], labels: Tensor, classes: int) -> Float[Tensor, "k d"]:
    """Directions that the labels ask for: the rows of a linear probe and the differences of the class means.

    For regression (``classes`` = 1) the covariance of features and target takes the place of the means.
    """
    x = features.double().cpu().numpy()
    y = labels.double().cpu().numpy()
    if len(np.unique(y)) < 2:  # nothing to tell apart
        return torch.zeros(1, x.shape[1], dtype=torch.float64)
    scaler = StandardScaler().fit(x)
    z = scaler.transform(x)
    if classes == 1:
        probe = Ridge(alpha=float(len(z))).fit(z, y).coef_[None]
        means = (x - x.mean(0)).T @ (y - y.mean()) / len(x)
        blocks = [probe / scaler.scale_, means[None]]
    else:
        fit = LogisticRegression(C=0.1, max_iter=200).fit(z, y.astype(int)).coef_ / scaler.scale_
        means = np.stack([x[y == k].mean(0) for k in np.unique(y)]) - x.mean(0)
        blocks = [fit - fit.mean(0) if len(fit) > 1 else fit, means]
    tiny = np.finfo(np.float64).tiny
    return torch.cat([torch.from_numpy(block / max(np.linalg.norm(block), tiny)) for block in blocks])


def num_directions(head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"], linear: bool) -> int:
    """How many directions the output basis needs, at most ``MAX_DIRECTIONS``: one number for all examples.

    With a ``linear`` head it is the rank of both kinds of rows together. Otherwise the head's rows differ from
    example to example and are counted in full.
    """
    if linear:
        rank = _rank(torch.cat([_normalised(head_rows)[0], task_rows.double()]))
    else:
        rank = head_rows.shape[1] + _rank(task_rows.double())
    return max(1, min(rank, head_rows.shape[2], MAX_DIRECTIONS))


def output_basis(
    head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"], count: int
) -> Float[Tensor, "b q d"]:
    """``count`` orthonormal rows: the gradients of the centred outputs first, then what the task's rows add to them.

    So first-order changes of the outputs are exact as long as ``count`` is at least k, whatever else is cut off.
    """
    own = torch.linalg.svd(_normalised(head_rows), full_matrices=False)[2][:, :count]
    task = task_rows.double()
    rest = task - (task @ own.mT) @ own
    added = torch.linalg.svd(rest, full_matrices=False)[2][:, : count - own.shape[1]]
    # where the rest vanishes its directions are arbitrary: QR keeps the span of the first rows and completes it
    together = torch.linalg.qr(torch.cat([own, added], 1).mT).Q.mT
    assert together.shape[1] == count
    return together


def _normalised(rows: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
    rows = rows.double()
    return rows / rows.flatten(1).norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)[:, None, None]


def _rank(rows: Float[Tensor, "m d"]) -> int:
    values = torch.linalg.svdvals(rows)
    return int((values > 1e-6 * values[0]).sum())
