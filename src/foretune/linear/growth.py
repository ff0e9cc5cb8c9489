r"""How far a network's features outgrow their tangents: an estimate from how far its layers move.

A deep network is a product of its layers: what one of them adds to the outputs, the others multiply as they change too.
Tangents leave that out. Where layers m move by ``dW_m``, together by

.. math:: \rho = \sum_m \lVert\Delta W_m\rVert_F / \lVert W_m\rVert_F,

the features are taken to change by ``1 + 2 rho`` times what their tangents say, but no further than the network's last
normalisation lets them (``bounded``); features that are not normalised by ``1 + 2 rho / (1 + rho)``. Runs so fit
earlier and over-fit further, as real ones do, and do not learn by heart what real ones cannot. Forms and constant were
chosen on real runs of MiniLM (``docs/log.md``); it certifies nothing.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

SLOPE = 2.0  # growth with the sum of the layers' relative changes


@dataclass(frozen=True)
class Growth:
    """The growth of outputs beyond their tangents, given the sizes of the network's weights.

    Attributes:
        norms: Frobenius norm of the weight of every adapted layer.
        normalised: Whether the features are bounded by a normalisation.
    """

    norms: Mapping[str, float]
    normalised: bool = False

    def layer_changes(self, changes: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """The sum over layers of their relative change, from the norms of their changes."""
        return sum((change / self.norms[layer] for layer, change in changes.items()), torch.zeros(()))

    def factor(self, changes: Mapping[str, Float[Tensor, ""]]) -> Float[Tensor, ""]:
        """What the features' change along the tangents is multiplied by."""
        rho = self.layer_changes(changes)
        return 1 + SLOPE * rho if self.normalised else 1 + SLOPE - SLOPE / (1 + rho)


def moved(change: Float[Tensor, "b q"], basis: Float[Tensor, "k q d"]) -> Float[Tensor, "b d"]:
    """The vectors with these coordinates in one basis (k = 1), or in one for each."""
    return change @ basis[0] if len(basis) == 1 else torch.einsum("bq,bqd->bd", change, basis)


def bounded(
    features: Float[Tensor, "b d"],
    change: Float[Tensor, "b q"],
    basis: Float[Tensor, "k q d"],
    gain: Float[Tensor, " d"],
    offset: Float[Tensor, " d"],
    beyond: int = 0,
) -> Float[Tensor, "b d"]:
    r"""Features ``h = gamma x + beta`` after a change with coordinates c in a basis Q, if x keeps its length.

    .. math:: h' = \beta + \frac{h - \beta + Q^\top c}{\sqrt{1 + |w|^2 / d}}, \qquad
        |w|^2 = \frac{q + m}{q}\; c^\top (Q \operatorname{diag}(\gamma)^2 Q^\top)^{-1} c

    w is the shortest change of x that has these coordinates, and as much more as there are directions beyond the basis
    along which x moves too, but is not known to.

    Args:
        features: Normalised vectors, or means of some that move alike.
        change: Along their tangents.
        basis: Orthonormal, one for all (k = 1) or one for each.
        gain: What the normalisation multiplies by.
        offset: What it adds.
        beyond: How many directions m matter beyond the basis.
    """
    metric = (basis * gain.square()) @ basis.mT
    exact, size = torch.finfo(metric.dtype), metric.diagonal(dim1=1, dim2=2).mean(1)
    least = (exact.eps * size).clamp(min=exact.tiny)  # for directions that gain nothing, in which nothing moves
    metric = metric + least[:, None, None] * torch.eye(metric.shape[1]).to(metric)
    if len(basis) == 1:
        square = (change * torch.linalg.solve(metric[0], change, left=False)).sum(1)
    else:
        square = (change * torch.linalg.solve(metric, change)).sum(1)
    square = square * (1 + beyond / basis.shape[1])
    return offset + (features - offset + moved(change, basis)) / (1 + square / len(gain)).sqrt().unsqueeze(1)
