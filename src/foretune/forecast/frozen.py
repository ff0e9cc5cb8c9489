"""What the network's features tell of the labels before anything is trained."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.kernel.kernel import targets
from foretune.tangents import Tangents

STRENGTHS = tuple(10 ** (k / 4) for k in range(-16, 9))  # of the ridge, times the features' mean square


def frozen_correlation(tangents: Tangents) -> float:
    """``correlation`` of the training examples' labels with the features that enter the head as it is."""
    train = slice(tangents.num_train)
    y = targets(tangents.labels[train], tangents.loss, tangents.outputs.shape[1])
    return correlation(tangents.features[train].double().cpu(), y.cpu())


def correlation(x: Float[Tensor, "n d"], y: Float[Tensor, "n c"]) -> float:
    r"""Correlation R, from 0 to 1, of targets with what a ridge regression says of each without having seen it.

    .. math:: R^2 = 1 - \min_\lambda \frac{\sum_i \| r_i / (1 - H_{ii}) \|^2}{\sum_i \| y_i - \bar y \|^2},\qquad
              H = \tfrac1n 1 1^\top + X (X^\top X + \lambda I)^{-1} X^\top

    with X the features less their mean, r the residuals of the fit (theory.md section 3: leave one out), and λ in
    ``STRENGTHS`` times the mean of ‖x‖². Where R² < 0, or the targets are all the same, it is 0.
    """
    if len(x) < 2:
        return 0.0
    centred, wanted = x - x.mean(0), y - y.mean(0)
    u, s, _ = torch.linalg.svd(centred, full_matrices=False)
    total, along = float(wanted.square().sum()), u.T @ wanted
    shares, sizes, tiny = u.square(), s.square(), torch.finfo(s.dtype).tiny
    errors = []
    for strength in STRENGTHS:
        gain = sizes / (sizes + strength * sizes.sum() / len(x)).clamp(min=tiny)
        left = 1 - 1 / len(x) - shares @ gain
        errors.append(float(((wanted - u @ (gain[:, None] * along)) / left[:, None]).square().sum()))
    least = min((each for each in errors if math.isfinite(each)), default=total)
    return math.sqrt(max(0.0, 1 - least / total)) if total > 0 else 0.0
