"""docs/theory.md P1 to P5: random trials without a violation, and limiting cases."""

import math
from collections.abc import Callable, Iterator

import pytest
import torch
import trials
from hypothesis import given, settings
from hypothesis import strategies as st

from foretune.kernel import Bound, Spectrum, risk_summary
from foretune.kernel.bounds import distance, linearisation_gap, next_gap, nonlinearity, output_gap, risk_bounds

SEEDS = st.integers(0, 2**32)
ZERO = Bound(0.0, certified=True)


def assert_no_violation(trial: Callable[[int], Iterator[trials.Trial]], seed: int) -> None:
    assert [result for result in trial(seed) if not result.holds] == []


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS)
def test_gradient_flow_stays_within_p1_and_p2(seed: int) -> None:
    assert_no_violation(trials.flow_trials, seed)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_stochastic_gradient_descent_stays_within_p3(seed: int) -> None:
    assert_no_violation(trials.descent_trials, seed)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS)
def test_risks_are_within_p5(seed: int) -> None:
    assert_no_violation(trials.risk_trials, seed)


def test_the_constants_of_the_lora_model_are_suprema() -> None:
    draw = trials.Draw(0)
    model = trials.Lora(draw.normal(2, 3), draw.normal(2, 2), draw.normal(3, 5))
    left, values, _ = torch.linalg.svd(model.x)
    rows, columns = torch.zeros(2, 3).double(), torch.zeros(2, 2).double()
    rows[0], columns[0, 0] = left[:, 0], 1.0  # dA and dB for which the Cauchy-Schwarz inequality of β is an equality
    delta = torch.cat([columns.flatten(), rows.flatten()])
    shifted = trials.Lora(model.a + rows, model.b + columns, model.x)
    change = torch.linalg.matrix_norm(shifted.jacobian() - model.jacobian(), 2)
    assert float(change) == pytest.approx(float(values[0] * delta.norm()))
    expected = torch.func.jacrev(model.outputs)(torch.zeros_like(delta))
    torch.testing.assert_close(model.jacobian(), expected)


def test_p1_equals_the_formula() -> None:
    speed = Bound(5.0, certified=True)
    for t in (1e-3, 0.1, 1.0, 50.0, math.inf):
        always = min(2.0 / math.sqrt(0.3), 5.0 * 2.0 / 0.3 * (1 - math.exp(-0.3 * t)))
        assert distance(2.0, 0.3, t, jacobian_norm=speed).value <= always * (1 + 1e-12)
        selective = min(2.0 * math.sqrt(t / 2), 5.0 * 2.0 * t)
        assert distance(2.0, 0.3, t, rule="selective", jacobian_norm=speed).value == pytest.approx(selective)
    assert distance(2.0, 0.3, math.inf).value == pytest.approx(2.0 / math.sqrt(0.3))
    assert distance(2.0, 0.0, math.inf).value == math.inf
    assert distance(2.0, 0.0, math.inf, jacobian_norm=ZERO) == distance(0.0, 0.0, math.inf) == ZERO
    assert distance(2.0, 0.3, 0.0, jacobian_norm=speed) == ZERO


def test_p2_vanishes_for_large_strength() -> None:
    def gap(strength: float) -> float:
        reach = distance(1.0, strength, math.inf)
        one = Bound(1.0, certified=True)
        return linearisation_gap(
            1.0, strength, math.inf, distance=reach, jacobian_norm=one, smoothness=one
        ).outputs.value

    assert gap(1e8) < 1e-7 < gap(1.0) < gap(0.1)
    assert gap(0.0) == math.inf


def test_bounds_from_estimates_are_called_estimated() -> None:
    proven, sampled = Bound(1.0, certified=True), Bound(1.0, certified=False)
    assert str(sampled) == "1 (estimated)" and str(proven) == "1 (certified)"
    assert not distance(1.0, 0.1, 0.01, jacobian_norm=sampled).certified
    assert distance(1.0, 100.0, 9.0, jacobian_norm=Bound(1e9, certified=False)).certified  # the estimate was not needed
    for smoothness, expected in ((proven, True), (sampled, False)):
        gap = linearisation_gap(1.0, 1.0, 1.0, distance=proven, jacobian_norm=proven, smoothness=smoothness)
        assert gap.parameters.certified == gap.outputs.certified == expected
    step = next_gap(ZERO, 0.1, rate=0.1, strength=0.0, curvature=sampled)
    assert not step.certified and not output_gap(step, 0.0, 1.0).certified


def test_p3_contracts_for_small_steps_and_grows_for_large_ones() -> None:
    one, curvature = Bound(1.0, certified=True), Bound(4.0, certified=True)

    def factor(rate: float, strength: float) -> float:
        return next_gap(one, 0.0, rate=rate, strength=strength, curvature=curvature).value

    assert factor(0.2, 1.0) == pytest.approx(0.8)  # η(L+λ) = 1: the factor is 1 - ηλ
    assert factor(1 / 3, 1.0) == pytest.approx(2 / 3)  # η(L+2λ) = 2
    assert factor(0.4, 1.0) == pytest.approx(1.0) and factor(0.5, 1.0) == pytest.approx(1.5)
    assert next_gap(one, 0.5, rate=0.2, strength=1.0, curvature=curvature).value == pytest.approx(0.9)


def test_p3_is_infinite_if_a_constant_is_unknown() -> None:
    unknown = Bound(math.inf, certified=True)
    first = next_gap(ZERO, 0.5, rate=0.1, strength=0.0, curvature=unknown)
    assert first.value == pytest.approx(0.05)  # both runs start at θ0, so there is nothing to contract
    assert next_gap(first, 0.5, rate=0.1, strength=0.0, curvature=unknown).value == math.inf
    assert next_gap(first, math.nan, rate=0.1, strength=0.0, curvature=ZERO).value == math.inf
    assert next_gap(unknown, 0.5, rate=0.1, strength=0.0, curvature=ZERO).value == math.inf


@pytest.mark.parametrize("bad", [-1.0, math.nan])
def test_negative_numbers_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="value is"):
        Bound(bad, certified=True)
    with pytest.raises(ValueError, match="strength is"):
        distance(1.0, bad, 1.0)
    with pytest.raises(ValueError, match="rate is"):
        next_gap(ZERO, 0.0, rate=bad, strength=0.0, curvature=ZERO)
    with pytest.raises(ValueError, match="rho0 is"):
        risk_bounds(torch.ones(2).double(), bad)


def test_p4_is_a_relative_distance() -> None:
    start, end = torch.zeros(2, 1).double(), torch.tensor([[3.0], [4.0]]).double()
    assert nonlinearity(end, end, start) == pytest.approx(0.0)
    assert nonlinearity(end, start, start) == pytest.approx(1.0)
    assert nonlinearity(end, end + torch.tensor([[0.6], [0.8]]).double(), start) == pytest.approx(0.2)
    assert nonlinearity(start, start, start) == pytest.approx(0.0)
    assert nonlinearity(start, end, start) == math.inf


def test_descent_at_its_best_step_has_the_rate_of_p5() -> None:
    spectrum = Spectrum.of(torch.diag(torch.tensor([8.0, 5.0, 2.0]).double()))
    for steps in (1, 7):
        left = spectrum.remainder(spectrum.descent_gain(0.0, spectrum.best_rate(0.0), steps))
        assert risk_bounds(left, 1.0)[1] == pytest.approx(0.5 * (3 / 5) ** (2 * steps))  # κ = 4
    penalised, limit = (
        spectrum.remainder(gain)
        for gain in (spectrum.descent_gain(1.0, spectrum.best_rate(1.0), 3), spectrum.flow_gain(1.0, math.inf))
    )
    assert float((penalised - limit).abs().max()) <= ((9 / 3 - 1) / (9 / 3 + 1)) ** 3  # κ_λ = 3
    singular = Spectrum.of(torch.diag(torch.tensor([6.0, 2.0, 0.0]).double()))
    assert singular.best_rate(0.0) == pytest.approx(0.25)  # for the modes with an eigenvalue above 0
    zero = Spectrum.of(torch.zeros(2, 2).double())
    assert risk_bounds(zero.remainder(zero.descent_gain(0.0, zero.best_rate(0.0), 5)), 2.0) == (2.0, 2.0)


def test_the_risks_of_a_summary_are_per_example() -> None:
    spectrum = Spectrum.of(torch.diag(torch.tensor([8.0, 2.0]).double()))
    summary = risk_summary(spectrum, torch.tensor([3.0, 4.0]).double(), num_train=5, strength=2.0, steps=3)
    assert summary["steps"] == 3
    assert summary["initial"] == pytest.approx(25 / 2 / 5)
    assert summary["lower"] == pytest.approx(summary["upper"]) == pytest.approx(2.5 * 0.6**6)  # φ = ∓0.6³ at both ends
    assert summary["ridge"] == pytest.approx((9 * 0.2**2 + 16 * 0.5**2) / 2 / 5)
