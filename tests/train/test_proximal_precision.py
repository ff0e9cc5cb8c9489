"""The proximal term with gradient accumulation, clipping, autocast and loss scaling."""

import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import foretune as ft
from train.proximal_cases import EXACT, RULES, gradient, learn, starts

SGD = torch.optim.SGD


def regression() -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 1)).double()
    return model, torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)


def test_accumulated_batches_equal_the_joint_batch() -> None:
    ends = []
    for parts in (1, 4):
        model, x, y = regression()
        optimizer = ft.ProximalAdamW(model.parameters(), lr=0.05, strength=1.0, rule="selective")
        for _ in range(6):
            for one, other in zip(x.chunk(parts), y.chunk(parts), strict=True):
                (nn.functional.mse_loss(model(one), other) / parts).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(nn.utils.parameters_to_vector(model.parameters()).detach())
    assert_close(*ends, **EXACT)


@pytest.mark.parametrize(("rule", "scope"), RULES)
def test_clipping_and_loss_scaling_do_not_change_the_selective_rule(rule: str, scope: str) -> None:
    """The learning rate is so small that only the pull matters; the length of the gradient makes no difference."""
    ends = []
    for scale, clip in ((1.0, math.inf), (2.0**16, math.inf), (1.0, 1e-6)):
        model, x, y = regression()
        parameters = list(model.parameters())
        optimizer = ft.proximal(SGD(parameters, lr=1e-14), strength=1e13, rule=rule, scope=scope)
        kept = []
        for step in range(12):
            optimizer.zero_grad()
            (scale * nn.functional.mse_loss(model(x), y)).backward()
            nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            kept.append(nn.utils.parameters_to_vector(parameters).detach().clone())
            with torch.no_grad():
                for number, parameter in enumerate(parameters):
                    parameter.add_(torch.sin(torch.arange(parameter.numel()) + 2.0 * step + number).view_as(parameter))
        ends.append(torch.stack(kept))
    assert_close(ends[1], ends[0], rtol=1e-6, atol=1e-6)
    assert_close(ends[2], ends[0], rtol=1e-6, atol=1e-6)


def test_autocast_to_bfloat16() -> None:
    model, x, y = regression()
    model, x, y = model.float(), x.float(), y.float()
    start = nn.utils.parameters_to_vector(model.parameters()).detach().clone()
    reference = [parameter.detach().clone() for parameter in model.parameters()]
    optimizer = ft.proximal(SGD(model.parameters(), lr=0.1), strength=0.5)
    for _ in range(5):
        with torch.autocast("cpu", torch.bfloat16):
            loss = nn.functional.mse_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        anchors = start.split([parameter.numel() for parameter in reference])
        for value, parameter, anchor in zip(reference, model.parameters(), anchors, strict=True):
            assert parameter.grad is not None and parameter.grad.dtype == torch.float32
            value.sub_(0.1 * (parameter.grad + 0.5 * (value - anchor.view_as(value))))
        optimizer.step()
    for value, parameter in zip(reference, model.parameters(), strict=True):
        assert_close(parameter.detach(), value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rule", "scope"), RULES)
def test_half_precision_parameters(dtype: torch.dtype, rule: str, scope: str) -> None:
    parameters = [nn.Parameter(start.to(dtype)) for start in starts()]
    optimizer = ft.ProximalAdamW(parameters, lr=0.05, strength=3.0, rule=rule, scope=scope)
    learn(optimizer, parameters, range(8))
    for parameter, start in zip(parameters, starts(), strict=True):
        assert parameter.dtype == dtype and torch.equal(optimizer.state[parameter]["proximal_anchor"], start.to(dtype))


def test_the_selective_rule_does_not_overflow_in_half_precision() -> None:
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float16))
    optimizer = ft.proximal(SGD([parameter], lr=1e-6), strength=1e6, rule="selective")
    parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    with torch.no_grad():
        parameter.add_(torch.tensor([3.0, 2.0]))
    # times 3 and 2 the gradient exceeds the largest number of the type, 65504
    parameter.grad = torch.tensor([6e4, -6e4], dtype=torch.float16)
    optimizer.step()
    # the parameter is back at its start, up to a step of η g
    assert_close(parameter.detach(), torch.ones(2, dtype=torch.float16), rtol=0.0, atol=0.07)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(("rule", "scope"), RULES)
def test_a_gradient_scaler_changes_nothing_and_skips_the_term_with_its_steps(
    fused: bool, rule: str, scope: str
) -> None:
    ends = []
    for scaled in (False, True):
        parameters = [nn.Parameter(start.float()) for start in starts()]
        optimizer = ft.ProximalAdamW(parameters, lr=0.05, strength=3.0, rule=rule, scope=scope, fused=fused)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=1000, enabled=scaled)
        for step in range(9):
            optimizer.zero_grad()
            overflow = step in {0, 4}  # also in the first step
            if overflow and not scaled:
                continue
            loss = torch.stack([(gradient(p.detach(), step) * p).sum() for p in parameters]).sum()
            scaler.scale(loss * math.inf if overflow else loss).backward()
            before = [parameter.detach().clone() for parameter in parameters]
            scaler.step(optimizer)
            scaler.update()
            same = all(torch.equal(one, other) for one, other in zip(parameters, before, strict=True))
            assert same == overflow
        ends.append(torch.cat([parameter.detach().flatten() for parameter in parameters]))
        if scaled:
            assert math.log2(scaler.get_scale()) == pytest.approx(8)  # halved twice
    assert_close(ends[1], ends[0], rtol=1e-5, atol=1e-6)
