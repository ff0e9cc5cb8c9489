"""The correction of simulated runs: its scales, its evidence, its effect on a curve, and the packaged weights."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_simulate import loaded

from foretune.forecast import calibration
from foretune.forecast.calibration import (
    QUANTITIES,
    Correction,
    MeanPoint,
    Simulation,
    corrected,
    corrections,
    evidence,
    may_collapse,
    scale,
    unstable,
)
from foretune.forecast.forecast import forecast
from foretune.forecast.movement import Movement
from foretune.forecast.simulate import fitted_losses, simulate
from foretune.forecast.starts import Starts

POINT = MeanPoint(
    step=5, epoch=1.0, train_loss=0.5, eval_loss=0.6, eval_metric=0.7, eval_loss_std=None, eval_metric_std=None
)


@pytest.mark.parametrize("quantity", QUANTITIES)
@pytest.mark.parametrize("metric_name", ["accuracy", "pearson"])
@given(value=st.floats(0.01, 0.99))
def test_a_scale_and_its_inverse_cancel(quantity: str, metric_name: str, value: float) -> None:
    on = scale(quantity, metric_name)
    assert on.back(on.to(value)) == pytest.approx(value, rel=1e-9)
    z, step = on.to(value), 1e-6
    assert on.slope(value) == pytest.approx((on.back(z + step) - on.back(z - step)) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("metric_name", ["accuracy", "pearson"])
@given(low=st.floats(0.02, 0.95), gap=st.floats(1e-3, 0.04), shift=st.floats(-3, 3), share=st.floats(0.01, 1))
def test_a_correction_moves_values_in_its_direction_and_keeps_their_order(
    metric_name: str, low: float, gap: float, shift: float, share: float
) -> None:
    one, other = (
        corrected(
            POINT | {"eval_metric": value, "eval_loss": 2 * value},
            dict.fromkeys(QUANTITIES, Correction(shift, 0.1)),
            share,
            metric_name,
        )
        for value in (low, low + gap)
    )
    for quantity, before in (("eval_metric", low), ("eval_loss", 2 * low)):
        assert one[quantity] < other[quantity]
        assert (one[quantity] - before) * shift >= -1e-12
        assert shift == 0 or abs(share * shift) < 1e-6 or one[quantity] != before


LINEAR = Simulation(
    largest_step=0.0,
    travel=0.0,
    change_before_learning=0.0,
    linearity_gap=0.0,
    layer_changes=0.0,
    depth=1.0,
    fitted_loss=0.4,
    eval_loss=0.5,
    eval_metric=0.8,
    guess=0.5,
    guess_loss=0.7,
    metric_name="accuracy",
    outputs=2,
    frozen=0.0,
    followed=None,
)
NOTHING = {
    "constant": 1.0,
    "correlation": 0.0,
    "gap": 0.0,
    "changes": 0.0,
    "overfit": 0.0,
    "learnt": 0.0,
    "unstable": 0.0,
    "blind": 0.0,
    "followed": 0.0,
    "fall": 0.0,
    "loss_fall": 0.0,
}


def test_evidence_stays_within_its_bounds() -> None:
    far = LINEAR._replace(linearity_gap=3.0, layer_changes=math.inf, fitted_loss=0.0, eval_loss=5.0)
    assert evidence(far) == NOTHING | {"gap": 1.0, "changes": 3.0, "overfit": 4.0, "learnt": 0.8}
    assert evidence(far._replace(outputs=3)) == NOTHING | {"gap": 1.0, "learnt": 0.8}
    near = LINEAR._replace(linearity_gap=0.5, layer_changes=0.3, fitted_loss=1.0)
    assert evidence(near) == pytest.approx(NOTHING | {"gap": 0.5, "changes": 0.3})
    fitted = LINEAR._replace(layer_changes=3.0, fitted_loss=0.1, eval_loss=0.1 * math.exp(1.5))
    regression = fitted._replace(metric_name="pearson", outputs=1)
    assert evidence(regression) == pytest.approx(NOTHING | {"correlation": 1.0, "changes": 3.0, "learnt": 0.75 * 0.6})
    blind = evidence(fitted._replace(eval_metric=0.51))  # what it fits does not carry over to new texts
    assert blind["learnt"] == pytest.approx(evidence(fitted)["learnt"] / 5)
    known = evidence(regression._replace(frozen=0.75))  # features that predict the labels leave less to learn
    assert known == pytest.approx(evidence(regression) | {"learnt": 0.25 * 0.75 * 0.6})
    hasty = evidence(regression._replace(travel=0.45))  # steps that are too large gain nothing
    assert hasty == pytest.approx(evidence(regression) | {"learnt": 0.0})
    shallow = evidence(regression._replace(depth=0.5))  # layers without adapters learn nothing
    assert shallow == pytest.approx(evidence(regression) | {"learnt": 0.25 * 0.75 * 0.6})


@pytest.mark.parametrize(("ratio", "learnt"), [(-1.0, 0.0), (0.0, 0.0), (2.0, 2 / 3)])
def test_real_runs_of_several_classes_learn_more_once_the_simulation_fits(ratio: float, learnt: float) -> None:
    found = LINEAR._replace(layer_changes=3.0, fitted_loss=1.0, eval_loss=math.exp(ratio), outputs=5)
    assert evidence(found) == pytest.approx(NOTHING | {"learnt": 0.75 * learnt})


@pytest.mark.parametrize(
    ("metric_name", "guess", "metric", "fall"),
    [
        ("accuracy", 0.5, 0.8, math.log(0.2 / 0.8)),
        ("pearson", 0.0, 0.6, -math.atanh(0.6)),
    ],
)
def test_runs_that_may_collapse_are_corrected_towards_guessing(
    metric_name: str, guess: float, metric: float, fall: float
) -> None:
    wild = LINEAR._replace(
        largest_step=0.02,
        travel=0.7,
        linearity_gap=3.0,
        layer_changes=2.0,
        metric_name=metric_name,
        guess=guess,
        eval_metric=metric,
    )
    correlation = float(metric_name == "pearson")
    known = NOTHING | {"correlation": correlation, "unstable": 1.0, "fall": fall, "loss_fall": math.log(0.7 / 0.5)}
    known["blind"] = 1.0
    assert evidence(wild) == pytest.approx(known)
    assert corrections(evidence(wild))["eval_metric"].shift == pytest.approx(fall, rel=0.2)
    half = {"blind": 0.0, "followed": 0.25, "fall": fall / 2, "loss_fall": known["loss_fall"] / 2}
    assert evidence(wild._replace(followed=0.25)) == pytest.approx(known | half)
    caught_up = {"blind": 0.0, "followed": 0.6, "fall": 0.0, "loss_fall": 0.0}
    assert evidence(wild._replace(followed=0.6)) == pytest.approx(known | caught_up)
    for followed in (None, 0.0, 1.0):
        for metric, most in ((guess + 0.04, 0.2), (math.nan, 0.0)):  # a small gain, or an unknown one
            foregone = evidence(wild._replace(eval_metric=metric, followed=followed))
            assert (foregone["blind"], foregone["followed"]) == (0.0, 0.0) and abs(foregone["fall"]) <= most


def test_runs_with_large_steps_may_collapse_unless_their_beginning_learns() -> None:
    step, far, way = calibration.STEP, calibration.TRAVEL, calibration.ASTRAY
    harmless = ((1.0, far, way), (step, math.inf, way))
    harmful = ((2 * step, 2 * far, 0.0), (0.0, 0.0, 2 * way), (math.inf, math.inf, 0.0))
    assert [may_collapse(*each) for each in (*harmless, *harmful)] == [*[False] * 2, *[True] * 3]
    assert [unstable(followed) for followed in (None, 0.0, 0.2, 0.25, 1.0)] == [*[True] * 3, False, False]
    astray = LINEAR._replace(change_before_learning=2 * way)
    assert evidence(astray)["unstable"] == 1 and evidence(astray)["fall"] < 0


@pytest.mark.parametrize(
    ("metric_name", "fitted_loss", "eval_loss", "overfit"),
    [
        ("accuracy", 1.0, 2.0, 0.0),  # no training example is learnt yet
        ("accuracy", math.log(2) / 3, 2.0, math.log(3)),
        ("accuracy", 0.1, 0.2, math.log(2)),
        ("pearson", 1.0, 2.0, math.log(2)),  # squared errors have the unit of the labels
        ("pearson", 2.0, 1.0, 0.0),
    ],
)
def test_over_fitting_counts_only_once_training_examples_are_learnt(
    metric_name: str, fitted_loss: float, eval_loss: float, overfit: float
) -> None:
    found = LINEAR._replace(linearity_gap=1.0, fitted_loss=fitted_loss, eval_loss=eval_loss)
    found = found._replace(metric_name=metric_name, outputs=1 if metric_name == "pearson" else 2)
    assert evidence(found)["overfit"] == pytest.approx(overfit)


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_evidence_about_a_run_that_diverged_is_finite(loss: float) -> None:
    found = LINEAR._replace(linearity_gap=math.inf, layer_changes=math.inf, eval_loss=loss)
    for each in (found, found._replace(largest_step=math.inf, travel=math.inf, fitted_loss=loss, eval_metric=math.nan)):
        assert all(map(math.isfinite, evidence(each).values()))


def test_a_linear_run_is_not_corrected() -> None:
    for quantity, each in corrections(evidence(LINEAR)).items():
        assert each.shift == 0 and 0 < each.spread < 1, quantity


def test_the_packaged_weights_are_for_existing_evidence() -> None:
    known = evidence(LINEAR)
    assert set(calibration.learnt()) == set(QUANTITIES)
    assert all(set(terms) <= set(known) for parts in calibration.learnt().values() for terms in parts.values())


def test_the_correction_grows_along_the_curve() -> None:
    known = {name: Correction(0.4, 0.1) for name in QUANTITIES}
    start, half, end = (corrected(POINT, known, share, "accuracy") for share in (0.0, 0.5, 1.0))
    assert start["eval_metric"] == pytest.approx(0.7) and start["eval_metric_std"] == 0
    assert math.log(end["eval_metric"] / (1 - end["eval_metric"])) == pytest.approx(math.log(0.7 / 0.3) + 0.4)
    assert start["eval_metric"] < half["eval_metric"] < end["eval_metric"]
    assert end["eval_loss"] == pytest.approx(0.6 * math.exp(0.4)) and end["eval_loss_std"] == pytest.approx(
        0.1 * end["eval_loss"]
    )
    assert end["train_loss"] == pytest.approx(0.5 * math.exp(0.4))


def test_values_that_are_not_finite_are_not_corrected() -> None:
    known = {name: Correction(0.4, 0.1) for name in QUANTITIES}
    point = corrected(MeanPoint(**(POINT | {"train_loss": None, "eval_loss": math.nan})), known, 1.0, "accuracy")
    assert point["train_loss"] is None and math.isnan(point["eval_loss"]) and point["eval_loss_std"] is None


def test_measuring_steps_does_not_change_the_run(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path)
    starts, movement = Starts(task, tangents), Movement(1.0)
    adapters, head = starts.draw(candidate, candidate.seed)
    watched, _ = simulate(tangents, task, candidate, adapters, head, candidate.seed, watch=[movement])
    plain, model = simulate(tangents, task, candidate, *starts.draw(candidate, candidate.seed), candidate.seed)
    assert watched.curve == plain.curve and movement.largest_step > 0
    with torch.no_grad():
        alone = [
            float(model.eval()(each, tangents.labels[each]).loss) for each in torch.arange(tangents.num_train).split(1)
        ]
    assert fitted_losses([model, model]) == [pytest.approx(sum(alone) / len(alone), rel=1e-4)] * 2


def test_a_forecast_shows_what_it_was_corrected_from(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path)
    found = forecast(tangents, task, [candidate])[0]
    entry = found.to_json()
    known = corrections(found.evidence)
    before, after = entry["simulated"]["eval_loss"], entry["predicted"]["eval_loss"]
    assert before == found.runs[0].final["eval_loss"] and found.seeds == [candidate.seed]
    assert after == pytest.approx(before * math.exp(known["eval_loss"].shift))
    assert entry["predicted"]["eval_metric_std"] > 0 and entry["linearity_gap"] == found.reach.linearity_gap
    again = forecast(tangents, task, [candidate], refreshes=1)[0]
    assert again.eval_loss == again.simulated[-1]["eval_loss"] and again.curve[-1]["eval_loss_std"]
