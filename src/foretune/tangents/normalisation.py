r"""How far a network's last normalisation lets the head's features move.

A normalisation gives ``u = gamma x + beta`` with ``|x|^2 = d``, whatever enters it. Moved along a tangent ``w`` of
that sphere, ``x`` becomes ``(x + w) / sqrt(1 + |w|^2 / d)``. So features that are such vectors, or the mean of several
that move alike, do not go as far as their tangents say: see ``foretune.linear.growth.bounded``.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class Seen(NamedTuple):
    """The last normalisation that ran, and what it gave."""

    module: nn.Module
    output: Tensor


@contextmanager
def last_normalised(model: nn.Module) -> Generator[list[Seen]]:
    """Inside the block the list holds the last normalisation of the latest forward pass."""
    seen: list[Seen] = []

    def see(module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen[:] = [Seen(module, output.detach())]

    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    handles = [module.register_forward_hook(see) for module in norms]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def gain_and_offset(module: nn.Module, width: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """What a normalisation of vectors of this width multiplies by and adds, γ and β (2 d), however it keeps them.

    It is asked about two vectors of mean 0 and mean square 1, which layer norms and RMS norms leave as they are, and
    of which the second is a check; None if it is of another kind.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, width, generator=generator, dtype=torch.float64)
    first, second = (_standard(each).to(device) for each in (first, second))
    with torch.no_grad():
        try:
            up, down, other, larger = (module(each.to(dtype)).double() for each in (first, -first, second, 10 * second))
        except (RuntimeError, TypeError, ValueError):  # it does not take single vectors
            return None
    gain, offset = (up - down) / (2 * first), (up + down) / 2
    near = max(10 * torch.finfo(dtype).eps, 1e-4)  # for what is added to the variance
    expected = gain * second + offset
    if any(float((each - expected).norm()) > near * float(expected.norm()) for each in (other, larger)):
        return None
    return torch.cat([gain, offset])


def _standard(vector: Float[Tensor, "1 d"]) -> Float[Tensor, "1 d"]:
    centred = vector - vector.mean()
    return centred / centred.square().mean().sqrt()


def made_of(features: Float[Tensor, "b d"], normalised: Float[Tensor, "..."], mask: Bool[Tensor, "b t"] | None) -> bool:
    """Whether features are normalised vectors of their examples, or the means of these over an example's tokens.

    Args:
        features: What enters the head.
        normalised: What the last normalisation gave, (b d) or (b t d).
        mask: Which tokens are no padding; by default all.
    """
    if normalised.dim() not in (2, 3) or normalised.shape[-1] != features.shape[-1]:
        return False
    tokens = normalised.unsqueeze(1) if normalised.dim() == 2 else normalised
    if len(tokens) != len(features):
        return False
    near = 10 * torch.finfo(normalised.dtype).eps ** 0.5 * features.norm(dim=1)
    if bool(((tokens - features.unsqueeze(1)).norm(dim=2).amin(1) <= near).all()):
        return True
    real = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask
    weights = (real / real.sum(1, keepdim=True)).to(tokens).unsqueeze(2)
    return bool((((tokens * weights).sum(1) - features).norm(dim=1) <= near).all())
