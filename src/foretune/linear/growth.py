r"""An estimate of how much further a network's features move than their tangents say.

A deep network is a product of its layers. If several layers change, one multiplies what another adds to the features.
Tangents are first-order, so they leave this out. Let layers m change by ``dW_m``, with the sum of relative changes

.. math:: \rho = \sum_m \lVert\Delta W_m\rVert_F / \lVert W_m\rVert_F.

The features are assumed to change by ``1 + 2 rho`` times the change along their tangents, within the limits of the
network's last normalisation (``bounded``). Features without a normalisation change by ``1 + 2 rho / (1 + rho)`` times.
With this growth simulated runs fit earlier and over-fit further, as real runs do. The limit keeps them from memorising
what real runs cannot. The forms and the constant 2 were chosen on real runs of MiniLM (``docs/log.md``). They are not a
bound.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SLOPE = 2.0  # growth per unit of rho, the sum of the layers' relative changes


@dataclass(frozen=True)
class Growth:
    """The growth of the features beyond their tangents, from the norms of the network's weights.

    Attributes:
        norms: The Frobenius norm of the weight of every adapted layer.
        normalised: Whether a normalisation limits the features.
    """

    norms: Mapping[str, float]
    normalised: bool = False

    def layer_changes(self, changes: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The sum over layers of their relative change, rho.

        Args:
            changes: The Frobenius norm of the change of every layer.
        """
        return sum((change / self.norms[layer] for layer, change in changes.items()), torch.zeros(()))

    def factor(self, changes: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The factor by which the features' change along the tangents is multiplied.

        Args:
            changes: The Frobenius norm of the change of every layer.
        """
        rho = self.layer_changes(changes)
        return 1 + SLOPE * rho if self.normalised else 1 + SLOPE - SLOPE / (1 + rho)


def moved(change: Float[Tensor, "b q"], basis: Float[Tensor, "k q d"]) -> Float[Tensor, "b d"]:
    """The vectors with these coordinates, in one basis for all examples (k = 1) or a basis for every example."""
    return change @ basis[0] if len(basis) == 1 else torch.einsum("bq,bqd->bd", change, basis)


def bounded(
    features: Float[Tensor, "b d"],
    change: Float[Tensor, "b q"],
    basis: Float[Tensor, "k q d"],
    gain: Float[Tensor, " d"],
    offset: Float[Tensor, " d"],
    beyond: int = 0,
) -> Float[Tensor, "b d"]:
    r"""Change normalised features ``h = gamma x + beta`` by coordinates c in a basis Q, so that x keeps its length.

    .. math:: h' = \beta + \frac{h - \beta + Q^\top c}{\sqrt{1 + |w|^2 / d}}, \qquad
        |w|^2 = \frac{q + m}{q}\; c^\top (Q \operatorname{diag}(\gamma)^2 Q^\top)^{-1} c

    Without the first factor, w is the shortest change of x that has these coordinates. The factor accounts for m
    directions outside the basis: x moves along them too, but their tangents are not collected.

    Args:
        features: Normalised vectors h, or means of vectors that move in the same way.
        change: Coordinates c of the change along the tangents.
        basis: Orthonormal basis Q, one for all examples (k = 1) or one for every example.
        gain: gamma, the weights of the normalisation.
        offset: beta, its bias.
        beyond: The number m of directions outside the basis.
    """
    metric = (basis * gain.square()) @ basis.mT
    precision, size = torch.finfo(metric.dtype), metric.diagonal(dim1=1, dim2=2).mean(1)
    floor = (precision.eps * size).clamp(min=precision.tiny)  # keeps the metric invertible where gamma is zero
    metric = metric + floor[:, None, None] * torch.eye(metric.shape[1]).to(metric)
    if len(basis) == 1:
        square = (change * torch.linalg.solve(metric[0], change, left=False)).sum(1)
    else:
        square = (change * torch.linalg.solve(metric, change)).sum(1)
    square = square * (1 + beyond / basis.shape[1])
    return offset + (features - offset + moved(change, basis)) / (1 + square / len(gain)).sqrt().unsqueeze(1)
