"""The growth of features beyond their tangents."""

import math

import pytest
import torch
from cases import lora_model, tiny_task
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from foretune.linear import Growth, TangentModel, Weights, change_norms
from foretune.linear.growth import bounded, moved
from foretune.tangents import collect, read_adapters

SHAPES = {"one": (2, 5, 7), "two": (2, 5, 7), "wide": (2, 9, 7), "other": (3, 5, 7)}  # r, i, o


def random_factors() -> dict[str, tuple[Tensor, Tensor]]:
    return {
        layer: (torch.randn(r, i, dtype=torch.float64), torch.randn(o, r, dtype=torch.float64))
        for layer, (r, i, o) in SHAPES.items()
    }


@pytest.mark.parametrize("started", [(), ("one", "wide")])
def test_change_norms_equal_norms_of_dense_changes(started: tuple[str, ...]) -> None:
    torch.manual_seed(0)
    first, scalings = random_factors(), {layer: 0.5 + k for k, layer in enumerate(SHAPES)}
    start = {layer: first[layer] for layer in started}
    several = [Weights(random_factors(), start, scalings), Weights(random_factors(), {}, scalings), Weights({}, {}, {})]
    for weights, norms in zip(several, change_norms(several), strict=True):
        assert set(norms) == set(weights.now)
        for layer, (a, b) in weights.now.items():
            change = b @ a - (weights.start[layer][1] @ weights.start[layer][0] if layer in weights.start else 0)
            expected = scalings[layer] * torch.linalg.matrix_norm(change)
            assert_close(norms[layer], expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_norms_of_small_changes_of_large_weights_are_accurate(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first = {layer: (a.to(dtype), b.to(dtype)) for layer, (a, b) in random_factors().items()}
    a, b = first["one"]
    step = 1e-4 * torch.randn_like(b)
    now = first | {"one": (a, b + step)}
    (norms,) = change_norms([Weights(now, first, dict.fromkeys(SHAPES, 1.0))])
    moved = (b + step).double() - b.double()
    assert_close(norms["one"], torch.linalg.matrix_norm(moved @ a.double()), rtol=1e-6, atol=0)
    assert all(float(norm) < 1e-6 for layer, norm in norms.items() if layer != "one")


CHANGES = st.lists(st.floats(0, 1e3), min_size=1, max_size=5)


def factor(changes: list[float], sizes: list[float], normalised: bool) -> float:
    """The growth factor if layers with weights of these norms change by these norms."""
    named = {str(k): torch.tensor(change, dtype=torch.float64) for k, change in enumerate(changes)}
    return float(Growth({str(k): size for k, size in enumerate(sizes)}, normalised=normalised).factor(named))


@pytest.mark.parametrize("normalised", [False, True])
@given(changes=CHANGES, scale=st.floats(1e-3, 1e3), more=st.floats(0.01, 10))
def test_growth_depends_on_relative_changes_and_never_falls(
    normalised: bool, changes: list[float], scale: float, more: float
) -> None:
    sizes = [2.0 + k for k in range(len(changes))]
    before = factor(changes, sizes, normalised)
    rescaled = factor([scale * change for change in changes], [scale * size for size in sizes], normalised)
    assert before == pytest.approx(rescaled)
    assert factor([0.0 for _ in changes], sizes, normalised) == 1
    assert factor([changes[0] + more * sizes[0], *changes[1:]], sizes, normalised) > before
    assert normalised or before < 3, "features without a normalisation grow at most threefold"


@pytest.mark.parametrize("normalised", [False, True])
@given(changes=CHANGES)
def test_growth_does_not_depend_on_which_layers_change(normalised: bool, changes: list[float]) -> None:
    sizes = [2.0 for _ in changes]
    assert factor(changes, sizes, normalised) == pytest.approx(factor(changes[::-1], sizes, normalised))
    assert factor(changes, sizes, normalised) == pytest.approx(factor([sum(changes)], [2.0], normalised))


def test_growth_of_infinite_and_nan_changes() -> None:
    growth = Growth({"one": 1.0})
    assert float(growth.factor({"one": torch.tensor(math.inf)})) == pytest.approx(3)
    assert math.isnan(growth.factor({"one": torch.tensor(math.nan)}))


def test_the_model_scales_its_changes_by_the_growth() -> None:
    tangents, adapters = collect(tiny_task("bert")), read_adapters(lora_model("bert", False))
    examples = torch.arange(9)
    plain = TangentModel(tangents, adapters, tangents.head)
    growth = Growth({adapter.layer: 3.0 for adapter in adapters})
    grown = TangentModel(tangents, adapters, tangents.head, growth=growth)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter, other in zip(plain.parameters(), grown.parameters(), strict=True):
            parameter.add_(0.1 * torch.randn_like(parameter))
            other.copy_(parameter)
        expected = growth.factor(plain.changes()) * plain.eval().coordinates(examples)
        assert_close(grown.eval().coordinates(examples), expected, rtol=1e-10, atol=1e-10)
        assert float(growth.factor(plain.changes())) > 1.01


def test_normalised_features_stay_within_their_limit() -> None:
    tangents, adapters = collect(tiny_task("roberta")), read_adapters(lora_model("roberta", True))
    examples = torch.arange(9)
    plain = TangentModel(tangents, adapters, tangents.head).eval()
    grown = TangentModel(tangents, adapters, tangents.head, growth=Growth({a.layer: 3.0 for a in adapters}, True))
    with torch.no_grad():
        for model in (plain, grown):
            for name, parameter in model.named_parameters():
                if "lora_B" in name:
                    parameter.mul_(30)
        change, (gain, offset) = grown.eval().coordinates(examples), tangents.normalisation
        expected = bounded(tangents.features, change, tangents.basis, gain, offset)
        free = tangents.features + moved(change, tangents.basis)
        assert float((free - offset).norm(dim=1).min()) > float((expected - offset).norm(dim=1).max())
        assert_close(grown(examples).logits, tangents.head(expected), rtol=1e-10, atol=1e-10)
        far = tangents.features + torch.einsum("bq,bqd->bd", plain.coordinates(examples), tangents.basis)
        assert_close(plain(examples).logits, tangents.head(far), rtol=1e-10, atol=1e-10)
