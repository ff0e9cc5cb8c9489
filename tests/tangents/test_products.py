"""The precision of large matrix products."""

import pytest
import torch
from helpers import tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from foretune.tangents import layer_gradients, select_layers, short_products
from foretune.tangents.head import outputs_of
from foretune.tangents.products import ShortLayers

HEADS = ("classifier", "score")


def test_precision_is_lowered_only_for_bfloat16_rows_and_restored() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with short_products(torch.float32):
        assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError), short_products(torch.bfloat16):
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 // 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_precisions_set_for_single_backends_are_left_unchanged() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    try:
        with short_products(torch.bfloat16):
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("modules", ["all-linear", "attention"])  # gradients pass through unwatched layers too
@pytest.mark.parametrize("kind", ["bert", "gpt2"])  # Linear and Conv1D
@pytest.mark.parametrize(("product", "limit"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_gradients_pass_layers_in_the_product_type(kind: str, modules: str, product: torch.dtype, limit: float) -> None:
    model, batch = tiny_model(kind).double().eval(), tiny_batch(kind)
    selected = {"bert": ["query", "value"], "gpt2": ["c_attn"]}[kind] if modules == "attention" else modules
    layers, short = select_layers(model, selected, HEADS), ShortLayers(product)
    short.product = product  # also on processors without bfloat16

    def compute(fast: bool) -> tuple[Tensor, list[Tensor]]:
        def forward() -> Tensor:
            if not fast:
                return outputs_of(model, batch)
            with short:
                return outputs_of(model, batch)

        outputs, _, _, gradients = layer_gradients(model, layers, forward, None)
        return outputs, gradients

    (outputs, gradients), (true_outputs, true) = compute(True), compute(False)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, true, strict=True)]
    assert limit / 100 <= max(errors) <= limit
    assert_close(outputs, true_outputs, rtol=1e-12, atol=1e-12)


def test_layers_listed_as_exact_are_computed_exactly() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).double()
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    model.requires_grad_(False)

    def gradient(exact: list[nn.Module]) -> Tensor:
        short = ShortLayers(torch.bfloat16, exact)
        short.product = torch.bfloat16
        with short:
            output = model(x)
        return torch.autograd.grad(output.sum(), x)[0]

    (true,) = torch.autograd.grad(model(x).sum(), x)
    assert_close(gradient([model]), true, rtol=0, atol=0)
    assert not torch.equal(gradient([model[1]]), true)


def test_trained_and_hooked_layers_have_correct_gradients() -> None:
    """For layers that are trained or have hooks, only the product with the weight is less exact."""
    layer = nn.Linear(3, 2).double()
    layer.register_forward_hook(lambda layer, args, output: output * 3)
    x, short = torch.randn(5, 3, dtype=torch.float64, requires_grad=True), ShortLayers(torch.bfloat16)
    short.product = torch.bfloat16
    with short:
        trained = layer(x)
    assert_close(trained, layer(x), rtol=0, atol=0)
    (weight,) = torch.autograd.grad(trained.sum(), layer.weight)
    assert_close(weight, 3 * x.detach().sum(0).expand(2, -1), rtol=1e-12, atol=1e-12)
    layer.requires_grad_(False)
    with short:
        frozen = layer(x)
    (gradient,) = torch.autograd.grad(frozen.sum(), x)
    assert_close(gradient, 3 * layer.weight.sum(0).expand(5, -1), rtol=2e-2, atol=2e-2)
