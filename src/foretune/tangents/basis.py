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
    return torch.cat([torch.from_numpy(block / np.linalg.norm(block)) for block in blocks])


def output_basis(
    head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"]
) -> Float[Tensor, "b q d"]:
    """Orthonormal rows spanning the gradients of the centred outputs and the task's directions, for each example.

    Where these are more than ``MAX_DIRECTIONS``, the leading ones are kept.
    """
    rows = torch.cat(
        [
            head_rows / head_rows.flatten(1).norm(dim=1)[:, None, None],
            task_rows.expand(len(head_rows), -1, -1),
        ],
        1,
    )
    _, values, directions = torch.linalg.svd(rows.double(), full_matrices=False)
    rank = int((values > 1e-6 * values[:, :1]).sum(1).max())
    return directions[:, : min(rank, MAX_DIRECTIONS)]
