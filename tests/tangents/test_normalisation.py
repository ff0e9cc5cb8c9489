"""The last normalisation of a network: its factor and offset, and the limit that it sets to features."""

import pytest
import torch
from cases import tiny_task
from torch import nn
from torch.testing import assert_close
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from foretune.linear.growth import bounded
from foretune.tangents import collect
from foretune.tangents.normalisation import are_normalised, gain_and_offset, last_normalisation


def random_layer_norm(width: int) -> nn.LayerNorm:
    norm = nn.LayerNorm(width, eps=0).double()
    with torch.no_grad():
        norm.weight.copy_(torch.rand(width) + 0.1)
        norm.bias.copy_(torch.randn(width))
    return norm


def measured_scales(module: nn.Module, width: int, dtype: torch.dtype = torch.float64) -> torch.Tensor | None:
    return gain_and_offset(module, width, dtype, torch.device("cpu"))


def test_gain_and_offset_of_a_layer_norm_are_measured() -> None:
    torch.manual_seed(0)
    norm = random_layer_norm(16)
    measured = measured_scales(norm, 16)
    assert measured is not None
    assert_close(measured[0], norm.weight.detach())
    assert_close(measured[1], norm.bias.detach())


@pytest.mark.parametrize(("kind", "added"), [(LlamaRMSNorm, 0.0), (GemmaRMSNorm, 1.0)])
def test_the_gain_of_an_rms_norm_is_measured_for_all_ways_to_store_it(kind: type[nn.Module], added: float) -> None:
    torch.manual_seed(0)
    norm = kind(16)
    weight = norm.get_parameter("weight")
    nn.init.normal_(weight)
    measured = measured_scales(norm, 16, torch.float32)
    assert measured is not None
    assert_close(measured[0], added + weight.detach().double(), rtol=1e-4, atol=1e-4)
    assert float(measured[1].norm()) < 1e-5


@pytest.mark.parametrize("other", [nn.BatchNorm1d(8).eval(), nn.GroupNorm(2, 8), nn.LayerNorm(4), nn.Tanh()])
def test_other_modules_have_no_gain_and_offset(other: nn.Module) -> None:
    assert measured_scales(other.double(), 8) is None
    assert measured_scales(other.bfloat16(), 8, torch.bfloat16) is None


class Conditional(nn.LayerNorm):
    """A normalisation with a second input."""

    def forward(self, input: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return scale * super().forward(input)


@pytest.mark.parametrize("other", [Conditional(8), nn.BatchNorm2d(8).eval()])
def test_modules_that_do_not_accept_single_vectors_have_no_gain_and_offset(other: nn.Module) -> None:
    assert measured_scales(other, 8, torch.float32) is None


def test_gain_is_measured_in_half_precision() -> None:
    torch.manual_seed(0)
    norm = random_layer_norm(16).bfloat16()
    measured = measured_scales(norm, 16, torch.bfloat16)
    assert measured is not None
    assert_close(measured[0], norm.weight.detach().double(), rtol=0.02, atol=0.02)


def test_normalised_tokens_and_their_means_are_recognised() -> None:
    torch.manual_seed(0)
    tokens = torch.randn(2, 4, 8, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, False, False]])
    means = torch.stack([tokens[0].mean(0), tokens[1, :2].mean(0)])
    assert are_normalised(tokens[:, 2], tokens, None) and are_normalised(tokens[:, 2], tokens[:, 2], None)
    assert are_normalised(means, tokens, mask) and not are_normalised(means, tokens, None)


@pytest.mark.parametrize("normalised", [torch.ones(2, 3, 4), torch.ones(2, 5), torch.ones(4, 3, 8), torch.ones(8)])
def test_other_features_are_not_recognised(normalised: torch.Tensor) -> None:
    assert not are_normalised(torch.arange(16.0).view(2, 8), normalised, None)


@pytest.mark.parametrize("shared", [True, False])
def test_a_normalised_vector_moves_as_far_as_the_limit_says(shared: bool) -> None:
    """For a layer norm the limit is exact for changes of any size along a tangent."""
    torch.manual_seed(0)
    norm, basis = random_layer_norm(16), torch.linalg.qr(torch.randn(6, 16, 16, dtype=torch.float64)).Q
    basis = basis[:1] if shared else basis
    before, direction = torch.randn(2, 6, 16, dtype=torch.float64)
    tangent = torch.func.jvp(norm, (before,), (direction,))[1]
    deviation = before.std(1, unbiased=False, keepdim=True)
    for size in (0.1, 1.0, 10.0):
        along = size * tangent
        coordinates = torch.einsum("bd,bqd->bq", along, basis.expand(6, -1, -1))
        moved_to = bounded(norm(before), coordinates, basis, norm.weight, norm.bias)
        assert_close(moved_to, norm(before + along / norm.weight * deviation), rtol=1e-8, atol=1e-8)


def test_the_limit_is_exact_for_the_mean_of_tokens_that_move_in_the_same_way() -> None:
    torch.manual_seed(0)
    x = torch.nn.functional.layer_norm(torch.randn(5, 16, dtype=torch.float64), (16,), eps=0)
    norm, (away,) = random_layer_norm(16), torch.linalg.svd(torch.cat([x, torch.ones(1, 16)]))[2][-1:]
    along = 3 * norm.weight * away  # a tangent for all tokens
    basis = torch.eye(16, dtype=torch.float64).unsqueeze(0)
    moved_to = bounded(norm(x).mean(0, keepdim=True), along.unsqueeze(0), basis, norm.weight, norm.bias)
    assert_close(moved_to, norm(x + 3 * away).mean(0, keepdim=True), rtol=1e-8, atol=1e-8)


def test_the_limit_accounts_for_directions_outside_the_basis() -> None:
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(16, 3, dtype=torch.float64)).Q.T.unsqueeze(0)
    gain, offset = torch.rand(16, dtype=torch.float64), torch.randn(16, dtype=torch.float64)
    coordinates, features = torch.randn(4, 3, dtype=torch.float64), torch.randn(4, 16, dtype=torch.float64)
    shortest = torch.linalg.lstsq(basis[0] * gain, coordinates.T).solution  # the shortest w with Q diag(gain) w = c
    expected = features - offset + coordinates @ basis[0]
    expected = offset + expected / (1 + shortest.square().sum(0) / 16).sqrt().unsqueeze(1)
    assert_close(bounded(features, coordinates, basis, gain, offset), expected, rtol=1e-10, atol=1e-10)
    further = offset + (features - offset + coordinates @ basis[0]) / (
        (1 + 2 * shortest.square().sum(0) / 16).sqrt().unsqueeze(1)
    )
    assert_close(bounded(features, coordinates, basis, gain, offset, beyond=3), further, rtol=1e-10, atol=1e-10)
    gain[:] = 0  # with gain 0 no direction can move
    unmoved = bounded(features, 0 * coordinates, basis, gain, offset)
    assert_close(unmoved, features)


def test_the_last_normalisation_is_recorded_and_hooks_are_removed() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    x = torch.randn(3, 4)
    with last_normalisation(model) as last:
        assert not last
        model(x)
    assert last[0].module is model[2]
    assert_close(last[0].output, model[2](model[1](model[0](x))))
    assert not any(module._forward_hooks for module in model)


@pytest.mark.parametrize(("kind", "rows"), [("bert", 0), ("roberta", 2), ("llama", 2)])
def test_architectures_with_and_without_normalised_features(kind: str, rows: int) -> None:
    task = tiny_task(kind)
    tangents = collect(task)
    assert tangents.normalisation.shape == (rows, tangents.features.shape[1])
    if rows:
        norms = [module for module in task.model.modules() if "Norm" in type(module).__name__]
        assert_close(tangents.normalisation[0], norms[-1].get_parameter("weight").detach(), rtol=1e-4, atol=1e-4)
