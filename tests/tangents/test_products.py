"""In which type long products are taken."""

import pytest
import torch
from helpers import tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from foretune.tangents import layer_gradients, select_layers, short_products
from foretune.tangents.head import outputs_of
from foretune.tangents.products import ShortLayers

HEADS = ("classifier", "score")


def test_products_are_short_for_short_rows_only_and_afterwards_as_before() -> None:
    assert torch.get_float32_matmul_precision() == "highest"
    with short_products(torch.float32):
        assert torch.get_float32_matmul_precision() == "highest"
    with pytest.raises(ZeroDivisionError), short_products(torch.bfloat16):
        assert torch.get_float32_matmul_precision() == "medium"
        _ = 1 // 0
    assert torch.get_float32_matmul_precision() == "highest"


def test_precisions_of_single_backends_stay_the_users() -> None:
    torch.backends.mkldnn.matmul.fp32_precision = "bf16"  # type: ignore[attr-defined]
    try:
        with short_products(torch.bfloat16):
            assert torch.backends.mkldnn.matmul.fp32_precision == "bf16"  # type: ignore[attr-defined]
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("modules", ["all-linear", "attention"])  # layers that are not watched have gradients too
@pytest.mark.parametrize("kind", ["bert", "gpt2"])  # Linear and Conv1D
@pytest.mark.parametrize(("product", "most"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_gradients_go_down_in_the_type_of_products(kind: str, modules: str, product: torch.dtype, most: float) -> None:
    model, batch = tiny_model(kind).double().eval(), tiny_batch(kind)
    some = {"bert": ["query", "value"], "gpt2": ["c_attn"]}[kind] if modules == "attention" else modules
    layers, short = select_layers(model, some, HEADS), ShortLayers(product)
    short.product = product  # also where the processor has no use for it

    def found(quick: bool) -> tuple[Tensor, list[Tensor]]:
        def forward() -> Tensor:
            if not quick:
                return outputs_of(model, batch)
            with short:
                return outputs_of(model, batch)

        outputs, _, _, gradients = layer_gradients(model, layers, forward, None)
        return outputs, gradients

    (outputs, gradients), (true_outputs, true) = found(True), found(False)
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(gradients, true, strict=True)]
    assert most / 100 <= max(errors) <= most
    assert_close(outputs, true_outputs, rtol=1e-12, atol=1e-12)


def test_layers_that_are_to_be_exact_are() -> None:
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


def test_what_others_make_of_a_layer_has_its_own_gradient() -> None:
    """Of layers that are trained, hooked or called otherwise, only the product itself is short."""
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
    (found,) = torch.autograd.grad(frozen.sum(), x)
    assert_close(found, 3 * layer.weight.sum(0).expand(5, -1), rtol=2e-2, atol=2e-2)
