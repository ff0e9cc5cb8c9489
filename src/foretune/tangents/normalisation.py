"""The last normalisation of a network, which limits how far the head's features can move.

The output of a normalisation is ``u = gamma x + beta``, where ``x`` has the fixed length ``|x|^2 = d``. If ``x`` moves
along a tangent ``w`` of this sphere, it becomes ``(x + w) / sqrt(1 + |w|^2 / d)``. Features that are such outputs, or
means of outputs that move in the same way, therefore move less far than their tangents say. The limit is applied in
``foretune.linear.growth.bounded``.
"""

from collections.abc import Generator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class NormalisationCall(NamedTuple):
    """A normalisation that ran, and its output."""

    module: nn.Module
    output: Tensor


@contextmanager
def last_normalisation(model: nn.Module) -> Generator[list[NormalisationCall]]:
    """Inside the block the list holds the last normalisation that ran; it is empty if none did."""
    last: list[NormalisationCall] = []

    def record(module: nn.Module, _inputs: object, output: Tensor) -> None:
        last[:] = [NormalisationCall(module, output.detach())]

    norms = [module for module in model.modules() if "Norm" in type(module).__name__]
    handles = [module.register_forward_hook(record) for module in norms]
    try:
        yield last
    finally:
        for handle in handles:
            handle.remove()


def gain_and_offset(module: nn.Module, width: int, dtype: torch.dtype, device: torch.device) -> Tensor | None:
    """Measure the factor γ and the offset β of a normalisation.

    The module runs on two vectors with mean 0 and mean square 1, which layer norms and RMS norms do not change before
    they apply γ and β. The first vector gives γ and β. The second checks them. So it does not matter how the module
    stores its parameters.

    Args:
        module: The normalisation.
        width: Width of its input.
        dtype: The type of the vectors.
        device: The device of the module.

    Returns:
        γ and β (2 d). None if the module is neither a layer norm nor an RMS norm.
    """
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 1, width, generator=generator, dtype=torch.float64)
    first, second = (_standardised(vector).to(device) for vector in (first, second))
    with torch.no_grad():
        try:
            plus, minus, check, larger = (module(x.to(dtype)).double() for x in (first, -first, second, 10 * second))
        except (RuntimeError, TypeError, ValueError):  # it does not accept single vectors
            return None
    gain, offset = (plus - minus) / (2 * first), (plus + minus) / 2
    tolerance = max(10 * torch.finfo(dtype).eps, 1e-4)  # normalisations add a small constant to the variance
    expected = gain * second + offset
    if any(float((output - expected).norm()) > tolerance * float(expected.norm()) for output in (check, larger)):
        return None
    return torch.cat([gain, offset])


def _standardised(vector: Float[Tensor, "1 d"]) -> Float[Tensor, "1 d"]:
    """Shift and scale a vector to mean 0 and mean square 1."""
    centred = vector - vector.mean()
    return centred / centred.square().mean().sqrt()


def are_normalised(
    features: Float[Tensor, "b d"], normalised: Float[Tensor, "..."], mask: Bool[Tensor, "b t"] | None
) -> bool:
    """Whether features are outputs of a normalisation, or the means of its outputs over an example's tokens.

    Args:
        features: The features that enter the head.
        normalised: The outputs of the normalisation, (b d) or (b t d).
        mask: True for tokens, False for padding. None if nothing is padded.
    """
    if normalised.dim() not in (2, 3) or normalised.shape[-1] != features.shape[-1]:
        return False
    tokens = normalised.unsqueeze(1) if normalised.dim() == 2 else normalised
    if len(tokens) != len(features):
        return False
    tolerance = 10 * torch.finfo(normalised.dtype).eps ** 0.5 * features.norm(dim=1)
    if bool(((tokens - features.unsqueeze(1)).norm(dim=2).amin(1) <= tolerance).all()):
        return True
    counted = torch.ones(tokens.shape[:2], device=tokens.device) if mask is None else mask
    weights = (counted / counted.sum(1, keepdim=True)).to(tokens).unsqueeze(2)
    return bool((((tokens * weights).sum(1) - features).norm(dim=1) <= tolerance).all())
