"""How far a last normalisation lets the features move."""

import math

import pytest
import torch
from cases import tiny_task
from torch import nn
from torch.testing import assert_close

from foretune.linear.growth import bounded
from foretune.tangents import collect
from foretune.tangents.radius import last_normalised, radii


def test_a_normalised_token_keeps_its_length() -> None:
    torch.manual_seed(0)
    tokens = nn.functional.layer_norm(torch.randn(3, 5, 8, dtype=torch.float64), (8,))
    assert_close(radii(tokens[:, 2], tokens, None), tokens[:, 2].norm(dim=1))
    assert_close(radii(tokens[:, 2], tokens[:, 2], None), tokens[:, 2].norm(dim=1))


def test_a_mean_has_the_radius_of_its_tokens() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    features = torch.stack([tokens[0].mean(0), tokens[1, :2].mean(0)])
    expected = [1 / (1 / some.square().sum(1)).mean() for some in (tokens[0], tokens[1, :2])]
    assert_close(radii(features, tokens, mask), torch.stack(expected).sqrt(), rtol=1e-10, atol=0)


@pytest.mark.parametrize("normalised", [None, torch.ones(2, 3, 4), torch.ones(2, 5), torch.ones(4, 3, 8)])
def test_other_features_have_no_bound(normalised: torch.Tensor | None) -> None:
    assert radii(torch.arange(16.0).view(2, 8), normalised, None).tolist() == [math.inf] * 2
    assert radii(torch.arange(8.0).view(2, 4), normalised, None).tolist() == [math.inf] * 2


def test_a_normalised_vector_moves_to_where_the_bound_says() -> None:
    """Exact for a layer norm without a shift, whatever the size of the change, if that is a tangent."""
    torch.manual_seed(0)
    before = torch.randn(6, 16, dtype=torch.float64)
    moved = torch.randn(6, 16, dtype=torch.float64)
    found: tuple[torch.Tensor, ...] = torch.func.jvp(
        lambda x: nn.functional.layer_norm(x, (16,), eps=0), (before,), (moved,)
    )
    u, tangent = found[0], found[1]
    for size in (0.1, 1.0, 10.0):
        along = size * tangent
        moved_to = bounded(u, along, u.norm(dim=1))
        assert_close(moved_to.norm(dim=1), u.norm(dim=1))
        deviation = before.std(1, unbiased=False, keepdim=True)
        assert_close(moved_to, nn.functional.layer_norm(before + along * deviation, (16,), eps=0), rtol=1e-8, atol=1e-8)


def test_without_a_bound_features_go_where_their_tangents_say() -> None:
    features, shift = torch.randn(3, 4), torch.randn(3, 4)
    assert torch.equal(bounded(features, shift, torch.full((3,), math.inf)), features + shift)


def test_the_last_normalisation_is_seen_and_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    with last_normalised(model) as seen:
        assert not seen
        model(x)
    assert_close(seen[0], model[2](model[1](model[0](x))))
    assert not any(module._forward_hooks for module in model)


@pytest.mark.parametrize(("kind", "finite"), [("bert", False), ("roberta", True), ("llama", True)])
def test_what_enters_the_heads_of_real_architectures(kind: str, finite: bool) -> None:
    tangents = collect(tiny_task(kind))
    assert bool(tangents.radii.isfinite().all()) is finite
    if finite:
        assert_close(tangents.radii, tangents.features.norm(dim=1), rtol=1e-5, atol=0)
