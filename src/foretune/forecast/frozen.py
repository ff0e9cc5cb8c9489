"""How well the network's features predict the labels before anything is trained."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.kernel.kernel import targets
from foretune.tangents import Tangents

STRENGTHS = tuple(10 ** (k / 4) for k in range(-16, 9))  # ridge strengths to try, times the mean of ‖x‖²


def frozen_correlation(tangents: Tangents) -> float:
    """Return the ``correlation`` of the training labels with the frozen features, those that enter the head."""
    train = slice(tangents.num_train)
    y = targets(tangents.labels[train], tangents.loss, tangents.outputs.shape[1])
    return correlation(tangents.features[train].double().cpu(), y.cpu())


def correlation(x: Float[Tensor, "n d"], y: Float[Tensor, "n c"]) -> float:
    r"""Return the correlation R of the targets with the leave-one-out predictions of a ridge regression.

    .. math:: R^2 = 1 - \min_\lambda \frac{\sum_i \| r_i / (1 - H_{ii}) \|^2}{\sum_i \| y_i - \bar y \|^2},\qquad
              H = \tfrac1n 1 1^\top + X (X^\top X + \lambda I)^{-1} X^\top

    Here X are the features minus their mean, r the residuals of the fit, and λ runs over ``STRENGTHS`` times the mean
    of ‖x‖². The leave-one-out formula is in docs/theory.md section 3.

    Args:
        x: Features.
        y: Targets.

    Returns:
        R, from 0 to 1. It is 0 if R² is negative or if all targets are the same.
    """
    if len(x) < 2:
        return 0.0
    features, wanted = x - x.mean(0), y - y.mean(0)
    u, s, _ = torch.linalg.svd(features, full_matrices=False)
    total, coefficients = float(wanted.square().sum()), u.T @ wanted
    leverages, eigenvalues, tiny = u.square(), s.square(), torch.finfo(s.dtype).tiny
    errors = []
    for strength in STRENGTHS:
        shrinkage = eigenvalues / (eigenvalues + strength * eigenvalues.sum() / len(x)).clamp(min=tiny)
        left_out = 1 - 1 / len(x) - leverages @ shrinkage
        errors.append(float(((wanted - u @ (shrinkage[:, None] * coefficients)) / left_out[:, None]).square().sum()))
    least = min((error for error in errors if math.isfinite(error)), default=total)
    return math.sqrt(max(0.0, 1 - least / total)) if total > 0 else 0.0
