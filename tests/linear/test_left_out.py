"""Noise that replaces the gradients along directions without tangents."""

from pathlib import Path

import pytest
import torch
from cases import lora_model, tiny_task
from torch import nn
from torch.testing import assert_close

from foretune.linear import TangentModel
from foretune.linear.left_out import LeftOut
from foretune.tangents import basis, collect, read_adapters


def test_noise_has_the_size_of_the_gradients_that_are_left_out() -> None:
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 20000, dtype=torch.float64))
    left_out = LeftOut([weight])
    q = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q
    pull = torch.randn(4, 6, dtype=torch.float64)  # gradients of the loss in the features of four examples
    inputs = torch.randn(4, 20000, dtype=torch.float64)
    features = inputs @ weight.T
    left_out.watch(features, q[None, :4], q[None])
    (features * pull).sum().backward()
    exact = pull.T @ inputs
    assert weight.grad is not None
    noise = weight.grad - exact
    ratio = (pull @ q[4:].T).square().sum() / (pull @ q[:4].T).square().sum()
    assert_close(left_out.ratio, float(ratio), rtol=1e-10, atol=0)
    assert_close(noise.square().sum(), ratio * exact.square().sum(), rtol=0.02, atol=0)
    assert abs(float((noise * exact).sum() / noise.norm() / exact.norm())) < 0.02


def test_there_is_no_noise_without_a_gradient_along_the_basis() -> None:
    weight = nn.Parameter(torch.ones(2, 3))
    left_out = LeftOut([weight])
    features = torch.ones(1, 3) @ weight.T
    left_out.watch(features, torch.tensor([[[1.0, 0.0]]]), torch.eye(2)[None])
    features[:, 1].sum().backward()
    assert_close(weight.grad, torch.tensor([[0.0] * 3, [1.0] * 3]))


def test_a_run_with_too_few_directions_has_noise_in_its_gradients(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(basis, "directions_taken", lambda span: 3)
    task = tiny_task("bert")
    tangents = collect(task, directory=tmp_path)
    assert tangents.basis.shape == (9, 3, 16) and tangents.span.shape == (1, 4, 16) and tangents.num_left_out == 1
    again = collect(task, directory=tmp_path)
    assert again.reused and torch.equal(again.span, tangents.span) and torch.equal(again.basis, tangents.basis)
    assert torch.equal(tangents.sample(torch.arange(2)).span, tangents.span)

    def gradient(model: TangentModel) -> torch.Tensor:
        torch.manual_seed(0)
        model.zero_grad()
        model(torch.arange(6), tangents.labels[:6]).loss.backward()
        return torch.cat(
            [p.grad.flatten() for name, p in model.named_parameters() if p.grad is not None and "lora" in name]
        )

    noisy, without_noise = (
        TangentModel(tangents, read_adapters(lora_model("bert", True)), tangents.head).train() for _ in range(2)
    )
    without_noise.left_out = None
    for parameter in without_noise.parameters():
        if parameter._backward_hooks:
            parameter._backward_hooks.clear()
    first, exact = gradient(noisy), gradient(without_noise)
    assert noisy.left_out is not None
    assert torch.equal(first, gradient(noisy))
    ratio = noisy.left_out.ratio
    assert 0 < ratio < 10
    share = (first - exact).square().sum() / exact.square().sum()
    assert_close(float(share), ratio, rtol=0.3, atol=0)
    with torch.no_grad():
        assert_close(noisy(torch.arange(9)).logits, without_noise(torch.arange(9)).logits)


def test_a_run_with_few_classes_has_no_noise() -> None:
    tangents = collect(tiny_task("bert"))
    assert tangents.num_left_out == 0 and torch.equal(tangents.basis, tangents.span)
    assert TangentModel(tangents, read_adapters(lora_model("bert", False)), tangents.head).left_out is None
