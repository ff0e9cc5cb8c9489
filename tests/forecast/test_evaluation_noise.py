"""The error of a metric that is measured on few evaluation examples."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_simulate import loaded

from foretune.forecast.calibration import scale
from foretune.forecast.evaluation_noise import EXAMPLES, evaluation_spread
from foretune.forecast.forecast import forecast


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("count", [50, 200])
def test_it_is_the_standard_error_of_a_share(share: float, count: int) -> None:
    to = scale("eval_metric", "accuracy").to
    measured = np.random.default_rng(0).binomial(count, share, 20_000) / count
    expected = math.hypot(evaluation_spread("accuracy", share, count), 1 / math.sqrt(EXAMPLES * share * (1 - share)))
    assert float(np.std([to(value) for value in measured])) == pytest.approx(expected, rel=0.1)


def test_it_is_the_standard_error_of_a_correlation() -> None:
    pairs = np.random.default_rng(0).multivariate_normal([0, 0], [[1, 0.6], [0.6, 1]], (4_000, 40))
    measured = [math.atanh(float(np.corrcoef(sample.T)[0, 1])) for sample in pairs]
    expected = math.hypot(evaluation_spread("pearson", 0.6, 40), 1 / math.sqrt(EXAMPLES - 3))
    assert float(np.std(measured)) == pytest.approx(expected, rel=0.05)


@given(value=st.floats(0, 1), count=st.integers(1, 2 * EXAMPLES))
def test_it_is_finite_and_falls_with_the_number_of_examples(value: float, count: int) -> None:
    for name in ("accuracy", "pearson"):
        fewer, more = (evaluation_spread(name, value, n) for n in (count, 2 * count))
        assert math.isfinite(fewer) and (fewer > more or more == fewer == 0 or count < 5)
        assert evaluation_spread(name, value, EXAMPLES) == 0


def test_the_error_bar_of_a_forecast_is_wider_on_few_examples(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path)
    (result,) = forecast(tangents, task, [candidate])
    few, many = (replace(result, eval_examples=count).final for count in (20, EXAMPLES))
    assert few["eval_metric"] == many["eval_metric"] and few["eval_loss_std"] == many["eval_loss_std"]
    assert few["eval_metric_std"] is not None and many["eval_metric_std"] is not None
    assert few["eval_metric_std"] > 1.5 * many["eval_metric_std"]
