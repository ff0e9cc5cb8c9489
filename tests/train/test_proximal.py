"""The proximal term around any optimiser, against loops written by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.testing import assert_close

import foretune as ft
from foretune.errors import InputError
from train.proximal_cases import EXACT, RULES, gradient, learn, starts

RATES, STRENGTHS = (0.05, 0.02), (3.0, 1.0)  # of the two parameter groups
SGD, AdamW = torch.optim.SGD, torch.optim.AdamW


def schedule(step: int) -> float:
    return 1 / (1 + 0.1 * step)


def groups(parameters: list[nn.Parameter]) -> list[dict[str, Any]]:
    """Put the last tensor into a group with its own learning rate and strength."""
    return [
        {"params": parameters[:2], "lr": RATES[0]},
        {"params": parameters[2:], "lr": RATES[1], "proximal_strength": STRENGTHS[1]},
    ]


def sgd(state: dict[str, Any], theta: Tensor, g: Tensor, rate: float) -> Tensor:
    return theta - rate * g


def momentum(state: dict[str, Any], theta: Tensor, g: Tensor, rate: float) -> Tensor:
    state["m"] = 0.9 * state["m"] + g if state else g
    return theta - rate * state["m"]


def adamw(state: dict[str, Any], theta: Tensor, g: Tensor, rate: float) -> Tensor:
    k = state["k"] = state.get("k", 0) + 1
    state["m"] = 0.9 * state.get("m", 0) + 0.1 * g
    state["v"] = 0.999 * state.get("v", 0) + 0.001 * g**2
    theta = theta - rate * 0.1 * theta  # AdamW's own decay toward 0
    return theta - rate * (state["m"] / (1 - 0.9**k)) / ((state["v"] / (1 - 0.999**k)).sqrt() + 1e-8)


def by_hand(step_of: Callable[..., Tensor], rule: str, scope: str, steps: int) -> tuple[list[Tensor], int]:
    """The end of a loop over single numbers, and how many pulls the selective rule left out."""
    thetas, anchors, left_out = starts(), starts(), 0
    states: list[dict[str, Any]] = [{} for _ in thetas]
    for step in range(steps):
        gradients = [gradient(theta, step) for theta in thetas]
        rates = [rate * schedule(step) for rate in (RATES[0], RATES[0], RATES[1])]
        pulls, slopes = [], []
        for theta, anchor, g, rate, strength in zip(
            thetas, anchors, gradients, rates, (STRENGTHS[0], *STRENGTHS), strict=True
        ):
            pull = rate * strength * (theta - anchor)
            pulls.append(pull)
            slopes.append(sum(a * b for a, b in zip(g.flatten().tolist(), pull.flatten().tolist(), strict=True)))
        if scope == "global":
            slopes = [sum(slopes)] * len(slopes)
        for i, rate in enumerate(rates):
            if rule == "always" or slopes[i] >= 0:
                thetas[i] = thetas[i] - pulls[i]
            else:
                left_out += 1
            thetas[i] = step_of(states[i], thetas[i], gradients[i], rate)
    return thetas, left_out


@pytest.mark.parametrize(("rule", "scope"), RULES)
@pytest.mark.parametrize(
    ("make", "step_of"),
    [
        (lambda params: SGD(params), sgd),
        (lambda params: SGD(params, momentum=0.9), momentum),
        (lambda params: AdamW(params, weight_decay=0.1, foreach=False), adamw),
        (lambda params: AdamW(params, weight_decay=0.1, fused=True), adamw),
    ],
    ids=["sgd", "momentum", "adamw", "fused"],
)
def test_the_term_equals_a_loop_written_by_hand(
    make: Any, step_of: Callable[..., Tensor], rule: str, scope: str
) -> None:
    parameters = [nn.Parameter(start) for start in starts()]
    optimizer = ft.proximal(make(groups(parameters)), strength=STRENGTHS[0], rule=rule, scope=scope)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule)
    for step in range(12):
        for parameter in parameters:
            parameter.grad = gradient(parameter.detach(), step)
        optimizer.step()
        scheduler.step()
    expected, left_out = by_hand(step_of, rule, scope, steps=12)
    for parameter, value in zip(parameters, expected, strict=True):
        assert_close(parameter.detach(), value, **EXACT)
    assert (left_out > 0) == (rule == "selective")


def test_sgd_descends_the_penalised_loss() -> None:
    """docs/theory.md P3: θ ← θ - η(g + λδ)."""
    ours, theirs = (nn.Parameter(starts()[0]) for _ in range(2))
    optimizer, plain = ft.proximal(SGD([ours], lr=0.1), strength=0.7), SGD([theirs], lr=0.1)
    for _ in range(20):
        for one, parameter, penalty in ((optimizer, ours, 0.0), (plain, theirs, 0.7)):
            one.zero_grad()
            loss = parameter.cos().sum() + penalty / 2 * (parameter - starts()[0]).square().sum()
            loss.backward()
            one.step()
    assert_close(ours.detach(), theirs.detach(), **EXACT)


@pytest.mark.parametrize(
    "make",
    [
        lambda params: SGD(params, lr=0.1, momentum=0.9, nesterov=True),
        lambda params: AdamW(params, lr=0.1),
        lambda params: AdamW(params, lr=0.1, amsgrad=True, fused=True),
    ],
    ids=["sgd", "adamw", "fused"],
)
def test_strength_zero_equals_the_inner_optimiser_bit_for_bit(make: Any) -> None:
    ours, theirs = ([nn.Parameter(start.float()) for start in starts()] for _ in range(2))
    learn(ft.proximal(make(ours), strength=0.0, rule="selective"), ours, range(10))
    learn(make(theirs), theirs, range(10))
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", "SGD Adagrad RMSprop Adadelta Adam Adamax NAdam RAdam Rprop ASGD Adafactor".split())
def test_every_optimiser_of_torch_works_with_the_term_and_a_checkpoint(name: str, tmp_path: Path) -> None:
    def make(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        inner = getattr(torch.optim, name)(parameters, lr=0.01)
        return ft.proximal(inner, strength=20.0, rule="selective", scope="tensor")

    whole, first = ([nn.Parameter(start.float()) for start in starts()] for _ in range(2))
    learn(make(whole), whole, range(8))
    optimizer = make(first)
    learn(optimizer, first, range(4))
    torch.save([optimizer.state_dict(), first], tmp_path / "state.pt")
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    second = [nn.Parameter(value.detach()) for value in values]
    resumed = make(second)
    resumed.load_state_dict(state)
    learn(resumed, second, range(4, 8))
    for one, other, start in zip(whole, second, starts(), strict=True):
        assert torch.equal(one, other) and torch.equal(resumed.state[other]["proximal_anchor"], start.float())


def test_a_foreign_state_has_no_anchor() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    with pytest.raises(InputError, match="saved without the proximal term"):
        ft.ProximalAdamW([parameter], strength=1.0).load_state_dict(AdamW([parameter]).state_dict())


def test_a_large_strength_holds_parameters_at_their_start() -> None:
    parameter = nn.Parameter(starts()[0])
    expected = starts()[0]
    learn(ft.proximal(SGD([parameter], lr=0.1), strength=1e9), [parameter], range(10))
    for step in range(10):
        expected = starts()[0] - 0.1 * gradient(expected, step)
    assert_close(parameter.detach(), expected, **EXACT)


def test_a_parameter_is_anchored_at_its_first_step_with_a_gradient() -> None:
    early, late, frozen, added = (nn.Parameter(torch.ones(2)) for _ in range(4))
    optimizer = ft.proximal(SGD([early, late, frozen], lr=0.1), strength=1.0)
    learn(optimizer, [early], range(3))
    with torch.no_grad():
        late.fill_(5.0)  # as if it were loaded, or broadcast to this process
    optimizer.add_param_group({"params": [added], "lr": 0.2})
    learn(optimizer, [late, added], range(3))
    anchors = [optimizer.state[each].get("proximal_anchor") for each in (early, late, added)]
    assert all(
        torch.equal(anchor, torch.full((2,), value)) for anchor, value in zip(anchors, (1.0, 5.0, 1.0), strict=True)
    )
    assert frozen not in optimizer.state and torch.equal(frozen.detach(), torch.ones(2))
    still = early.detach().clone()
    early.grad = None
    optimizer.step()
    assert torch.equal(early.detach(), still)


def test_maximising_reverses_the_selective_rule() -> None:
    def run(maximize: bool) -> Tensor:
        parameter = nn.Parameter(starts()[0])
        optimizer = ft.proximal(SGD([parameter], lr=0.05, maximize=maximize), strength=3.0, rule="selective")
        for step in range(12):
            parameter.grad = gradient(parameter.detach(), step) * (-1 if maximize else 1)
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(maximize=True), run(maximize=False))


def test_a_closure_is_evaluated_once_at_the_unmoved_parameters() -> None:
    by_closure, by_hand = (nn.Parameter(starts()[0]) for _ in range(2))
    seen: list[Tensor] = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = by_closure.cos().sum()
        loss.backward()
        seen.append(by_closure.detach().clone())
        return loss

    optimizer = ft.ProximalAdamW([by_closure], lr=0.1, strength=2.0)
    other = ft.ProximalAdamW([by_hand], lr=0.1, strength=2.0)
    for step in range(5):
        assert torch.equal(by_closure, by_hand)
        other.zero_grad()
        loss = by_hand.cos().sum()
        loss.backward()
        other.step()
        assert optimizer.step(closure) == loss and len(seen) == step + 1
    assert torch.equal(by_closure, by_hand)


@pytest.mark.parametrize(
    ("change", "fragments"),
    [
        ({"strength": -1.0}, ("strength", "-1", "at least 0")),
        ({"strength": math.nan}, ("strength", "nan", "at least 0")),
        ({"rule": "selctive"}, ("rule", "'selctive'", "Write selective")),
        ({"scope": "layer"}, ("scope", "'layer'", "global, tensor")),
        ({"optimizer": torch.optim.LBFGS([nn.Parameter(torch.ones(1))])}, ("LBFGS", "several gradients")),
        ({"optimizer": ft.ProximalAdamW([nn.Parameter(torch.ones(1))], strength=1.0)}, ("already", "once")),
        ({"optimizer": AcceleratedOptimizer.__new__(AcceleratedOptimizer)}, ("accelerate", "before prepare")),
        (
            {"optimizer": SGD([{"params": [nn.Parameter(torch.ones(1))], "proximal_strength": -2.0}])},
            ("proximal_strength of a parameter group", "-2"),
        ),
    ],
    ids=["strength", "nan", "rule", "scope", "lbfgs", "twice", "prepared", "group"],
)
def test_misuse_is_explained(change: dict[str, Any], fragments: tuple[str, ...]) -> None:
    arguments: dict[str, Any] = {"optimizer": SGD([nn.Parameter(torch.ones(1))]), "strength": 1.0} | change
    with pytest.raises(InputError) as caught:
        ft.proximal(arguments.pop("optimizer"), **arguments)
    assert all(fragment in str(caught.value) for fragment in fragments), str(caught.value)
