"""The engine: inputs of layers and gradients at their outputs, compared with autograd."""

import gc
import weakref
from typing import Any

import pytest
import torch
from cases import TwiceModel
from helpers import tiny_batch, tiny_model
from torch import Tensor, nn
from torch.testing import assert_close

from foretune.errors import InputError
from foretune.tangents import layer_gradients
from foretune.tangents.head import outputs_of
from foretune.tangents.reference import jacobian, kernel

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}


def test_inputs_and_gradients_of_calls_give_the_gradients_of_weights() -> None:
    model, batch = TwiceModel().double(), tiny_batch("roberta")
    mask = batch["attention_mask"].bool()
    layers = {"shared": model.shared, "other": model.other}
    outputs, calls, inputs, gradients = layer_gradients(model, layers, lambda: outputs_of(model, batch), mask)
    assert [(call.layer, call.index, call.shared) for call in calls] == [
        ("shared", 0, 0),
        ("other", 0, 0),  # it has the same input tensor
        ("shared", 1, 2),
    ]
    # d f_c / d W = sum over rows and calls of gradient' input
    for name, layer in layers.items():
        weights = [torch.autograd.grad(outputs_of(model, batch)[:, c].sum(), layer.weight)[0] for c in range(3)]
        gradient = sum(
            torch.einsum("tco,ti->coi", gradients[call.position], inputs[call.position])
            for call in calls
            if call.layer == name
        )
        assert_close(gradient, torch.stack(weights), **EXACT)
    assert [int(call.row_counts.sum()) for call in calls] == [int(mask.sum())] * 3
    assert not outputs.requires_grad


def test_an_input_that_was_changed_in_place_is_not_shared() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(3, 2), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            first = self.one(input=x)  # passed by name
            return first + self.two(x.mul_(2))

    model, x = InPlace(), torch.randn(4, 3)
    _, calls, inputs, _ = layer_gradients(model, dict(model.named_children()), lambda: model(x.clone()), None)
    assert [call.shared for call in calls] == [0, 1]
    assert_close(inputs[1], 2 * inputs[0])


def test_padding_is_removed_from_flattened_tokens() -> None:
    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(3, 2)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return (self.map(x.flatten(0, 1)).view(*x.shape[:2], 2) * mask.unsqueeze(-1)).sum(1)

    model, x = Flat(), torch.randn(2, 4, 3)
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    _, (call,), (inputs,), _ = layer_gradients(model, {"map": model.map}, lambda: model(x, mask), mask.bool())
    assert call.row_counts.tolist() == [2, 4]
    assert_close(inputs, x[mask.bool()])
    with pytest.raises(InputError, match="map mix"):
        layer_gradients(model, {"map": model.map}, lambda: model(x, mask), None)


def test_outputs_may_ignore_a_layer_and_forward_may_compute_gradients() -> None:
    model, x = nn.ModuleDict({"used": nn.Linear(3, 2), "idle": nn.Linear(3, 2)}), torch.randn(4, 3)

    def forward() -> Tensor:
        hidden = model["used"](x)
        model["idle"](x)
        torch.autograd.grad(hidden.sum(), hidden)  # must not be recorded as a backward pass
        return hidden.detach() if ignore else hidden

    for ignore in (False, True):
        _, calls, _, gradients = layer_gradients(model, dict(model.items()), forward, None)
        assert [call.layer for call in calls] == ["used", "idle"]
        assert not gradients[1].any() and bool(gradients[0].any()) is not ignore


def test_graphs_are_freed_without_the_garbage_collector() -> None:
    # tensor hooks that refer to the tape make cycles through C++ that Python never frees
    class Witness:
        """A tensor hook. It lives as long as its graph."""

        def __call__(self, gradient: Tensor) -> None: ...

    model: Any = tiny_model("bert")
    batch = tiny_batch("bert")
    witnesses: list[weakref.ref[Witness]] = []
    layers = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear)}

    def forward() -> Tensor:
        hidden = model.bert(**{name: value for name, value in batch.items() if name != "labels"})
        witness = Witness()
        witnesses.append(weakref.ref(witness))
        hidden.last_hidden_state.register_hook(witness)
        return model.classifier(hidden.pooler_output)

    gc.collect()
    gc.disable()
    try:
        layer_gradients(model, layers, forward, batch["attention_mask"].bool())
        assert witnesses[0]() is None
        with pytest.raises(ZeroDivisionError):
            layer_gradients(model, layers, lambda: forward() / (1 // 0), None)
    finally:
        gc.enable()
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_every_layer_without_a_rule_is_named() -> None:
    model = nn.Sequential(nn.Embedding(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    with pytest.raises(InputError, match=r"layers 0, 1 \(types: .*LayerNorm.*Embedding"):
        layer_gradients(model, dict(model.named_children()), lambda: model(torch.ones(2, 3).long()), None)


def test_the_reference_jacobian_agrees_with_autograd() -> None:
    from cases import lora_model

    model, batch = lora_model("bert", True), tiny_batch("bert")
    jacobians = jacobian(model, batch)
    parameters = dict(model.named_parameters())
    logits = outputs_of(model, batch)
    for c, n in ((0, 1), (2, 3)):
        names = list(jacobians)
        rows = torch.autograd.grad(logits[n, c], [parameters[name] for name in names], retain_graph=True)
        for name, row in zip(names, rows, strict=True):
            assert_close(jacobians[name][n, c], row, **EXACT)
    assert kernel(jacobians).shape == (12, 12)
