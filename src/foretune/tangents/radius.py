r"""How far a network's last normalisation lets the head's features move.

A normalised vector ``u`` keeps its length: moved along a tangent ``v``, it becomes
``(u + v) / sqrt(1 + |v|^2 / |u|^2)``. So features that are such a vector, or the mean of several, do not go as far as
their tangents say.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


@contextmanager
def last_normalised(model: nn.Module) -> Generator[list[Tensor]]:
    """Inside the block the list holds what the last normalisation of the latest forward pass gave."""
    seen: list[Tensor] = []

    def see(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen[:] = [output.detach()]

    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    handles = [module.register_forward_hook(see) for module in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def radii(
    features: Float[Tensor, "b d"], normalised: Float[Tensor, "..."] | None, mask: Bool[Tensor, "b t"] | None
) -> Float[Tensor, " b"]:
    r"""The length R that the last normalisation gives to what the features are made of, for every example.

    Of features that are one of an example's normalised vectors u, their own length; of the mean over its tokens

    .. math:: R^2 = 1 \Big/ \operatorname{mean}_t \lVert u_t \rVert^{-2},

    what is right for small changes that all tokens share. ∞ for all other features, which nothing bounds.

    Args:
        features: What enters the head.
        normalised: What the last normalisation gave, (b d) or (b t d).
        mask: Which tokens are no padding; by default all.
    """
    free = torch.full((len(features),), math.inf, dtype=features.dtype, device=features.device)
    if normalised is None or normalised.dim() not in (2, 3) or normalised.shape[-1] != features.shape[-1]:
        return free
    tokens = normalised.unsqueeze(1) if normalised.dim() == 2 else normalised
    if len(tokens) != len(features):
        return free
    near = 10 * torch.finfo(normalised.dtype).eps ** 0.5 * features.norm(dim=1)
    if bool(((tokens - features.unsqueeze(1)).norm(dim=2).amin(1) <= near).all()):
        return features.norm(dim=1)
    real = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask
    weights = (real / real.sum(1, keepdim=True)).to(tokens).unsqueeze(2)
    if bool((((tokens * weights).sum(1) - features).norm(dim=1) <= near).all()):
        return (tokens.square().sum(2).reciprocal() * weights.squeeze(2)).sum(1).rsqrt().to(features.dtype)
    return free
