r"""Correct a simulated run by what real runs of other tasks did beyond their simulations.

If the layers of a run move far and the run fits its training examples, the real run learns features that the
simulation lacks. Its metric is then usually higher than simulated, and its evaluation loss rises further if it
over-fits. The size of this correction was fitted to real runs (``benchmarks/truth/calibrate.py``, ``docs/truth.md``),
on a scale without bounds:

.. math:: z_{real} = z_{simulated} + \sum_j w_j\, x_j \pm \sigma,\qquad \log\sigma = \sum_j v_j\, x_j

Here z is the logit of an accuracy, the inverse hyperbolic tangent of a correlation, or the logarithm of a loss; ``x``
is the ``evidence`` about the simulated run; and σ is the standard deviation of real runs around the forecast,
including the difference between two seeds. This is an estimate from other tasks, not a bound.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from foretune.train.curve import Point

# Bounds of the evidence.
OVERFIT = 4.0  # largest log ratio of evaluation to training loss that counts
CHANGES = 3.0  # largest sum of the layers' relative changes that counts

# Thresholds of `travel`, the relative change of the weights if all steps led one way (see `movement.Movement`).
TRAVEL = 0.57  # above it, real runs were seen to collapse, from some seeds or from all
HASTY = 0.4  # above it the steps are hasty: too large for real runs to learn more than their simulation does

# Other thresholds of a run that may collapse.
STEP = 0.005  # relative change of the weights in one step; below it, no run collapsed because of a large `travel`
ASTRAY = 0.056  # a run goes astray, and may collapse, if its weights change by more than this before it learns
LITTLE = 0.05  # a gain of the metric over guessing that is small: such a run has nothing to lose by a collapse

# Thresholds above which real runs often end far from their forecast.
LATE = 0.022  # relative change of the weights before the run learns
OPEN = 0.3  # `left_open`: what the frozen features cannot predict, times a measure of how far the layers move

# Runs of several classes.
SEVERAL = 4  # with more classes than this, forecasts of runs that end early are too good
UNLEARNT = 0.4  # a run with so many classes ends early if its training loss is above this share of a uniform guess's

# Thresholds of `followed`: the share of what the simulation learnt that the real run learnt too, in its beginning.
FOLLOWED = 0.25  # a run below it collapses
CAUGHT_UP = 0.5  # a run above it ends where its simulation ends

QUANTITIES = ("eval_metric", "eval_loss", "train_loss")


class MeanPoint(Point):
    """A point of a forecast's curve, with the standard deviations of a real run around it, or None without any."""

    eval_loss_std: float | None
    eval_metric_std: float | None


class Scale(NamedTuple):
    """A map ``to`` an unbounded scale, the map ``back``, and the ``slope`` of ``back`` at a value of the quantity."""

    to: Callable[[float], float]
    back: Callable[[float], float]
    slope: Callable[[float], float]


def _inside(value: float, low: float, high: float) -> float:
    return min(max(value, low), high)


_LOGARITHM = Scale(lambda x: math.log(max(x, 1e-6)), math.exp, lambda x: x)
SCALES = {
    "accuracy": Scale(
        lambda x: math.log(_inside(x, 0.005, 0.995) / (1 - _inside(x, 0.005, 0.995))),
        lambda z: 1 / (1 + math.exp(-z)),
        lambda x: x * (1 - x),
    ),
    "pearson": Scale(lambda x: math.atanh(_inside(x, -0.995, 0.995)), math.tanh, lambda x: 1 - x**2),
}


def scale(quantity: str, metric_name: str) -> Scale:
    """Return the scale on which a quantity of ``QUANTITIES`` is corrected."""
    return SCALES[metric_name] if quantity == "eval_metric" else _LOGARITHM


def may_collapse(largest_step: float, travel: float, change_before_learning: float) -> bool:
    """Whether such runs were seen to collapse: large steps lead too far in all, or lead far before the run learns."""
    return (largest_step > STEP and travel > TRAVEL) or change_before_learning > ASTRAY


def gains_little(gain: float) -> bool:
    """Whether a simulated run ends near guessing, given its gain of the metric over guessing."""
    return not gain >= LITTLE  # true for nan


def late(change_before_learning: float) -> bool:
    """Whether a run starts to learn so late that it learns features which the tangents do not contain.

    Such runs were seen to end far from their forecasts.
    """
    return change_before_learning > LATE


def left_open(frozen: float, layer_changes: float) -> float:
    """Return ``(1-R) ρ/(1+ρ)``: how much a real run may learn that the frozen features do not contain.

    Args:
        frozen: Correlation R of the labels with their prediction from frozen features.
        layer_changes: Sum ρ of the layers' relative changes.

    Returns:
        A number from 0 to 1.
    """
    return (1 - frozen) * (1 - 1 / (1 + layer_changes))


def much_open(frozen: float, layer_changes: float) -> bool:
    """Whether a run may learn so much beyond its frozen features that real runs ended far from their forecasts."""
    return left_open(frozen, layer_changes) > OPEN


def unlearnt(fitted_loss: float, outputs: int) -> bool:
    """Whether a run with several classes ends before it has learnt to tell its training examples apart.

    A real run strengthens most what it learns first. At that point it therefore tells fewer classes apart than its
    simulation does.

    Args:
        fitted_loss: Mean loss of the training examples at the end.
        outputs: Number of classes.

    Returns:
        True if there are more than ``SEVERAL`` classes and the loss is above ``UNLEARNT`` of a uniform guess's.
    """
    return outputs > SEVERAL and fitted_loss > UNLEARNT * math.log(outputs)


def unstable(followed: float | None) -> bool:
    """Whether a run that may collapse is expected to; it is, unless its real beginning learnt enough."""
    return followed is None or followed < FOLLOWED


def at_risk(may_collapse: bool, followed: float | None) -> bool:
    """Whether a run may still collapse: its beginning did not learn ``CAUGHT_UP`` of what the simulation learnt."""
    return may_collapse and (followed is None or followed < CAUGHT_UP)


class Simulation(NamedTuple):
    """The measurements of a simulated run on which its correction depends.

    Attributes:
        largest_step: Largest relative change of the linear weights in one of the first steps.
        travel: Relative change of the linear weights if all steps led one way, see
            ``foretune.forecast.movement.Movement``.
        change_before_learning: Relative change of the linear weights when the training loss begins to fall.
        linearity_gap: How far the network is from its tangents at the end, see
            ``foretune.forecast.network.linearity_gap``.
        layer_changes: Sum of the adapted layers' relative changes at the end.
        depth: Share of the network's layers that have adapters.
        fitted_loss: Mean loss of the training examples at the end.
        eval_loss: Mean loss of the evaluation examples at the end.
        eval_metric: Metric at the end.
        guess: Metric of guessing.
        guess_loss: Loss of guessing.
        metric_name: Name of the metric.
        outputs: Number of outputs of the network: one for regression, otherwise the number of classes.
        frozen: Correlation of the labels with their prediction from the features before training, see
            ``foretune.forecast.frozen``.
        followed: Share of what the simulation learnt in its beginning that the real run learnt too; None if no
            beginning of the real run was trained.
    """

    largest_step: float
    travel: float
    change_before_learning: float
    linearity_gap: float
    layer_changes: float
    depth: float
    fitted_loss: float
    eval_loss: float
    eval_metric: float
    guess: float
    guess_loss: float
    metric_name: str
    outputs: int
    frozen: float
    followed: float | None

    @property
    def gain(self) -> float:
        """Metric at the end minus the metric of guessing."""
        return self.eval_metric - self.guess


def evidence(simulation: Simulation) -> dict[str, float]:
    """Compute the features x from which a correction is predicted.

    In the formulas d is the share of layers with adapters, R the correlation of the labels with their prediction from
    frozen features, ρ the sum of the layers' relative changes, and ``q = log(eval_loss / fitted_loss)``, kept between
    0 and ``OVERFIT``. A run that diverged has ``q = OVERFIT``. With two classes ``eval_loss`` counts in q up to log 2
    only: a run over-fits only once the right label of a training example is the more probable one.

    For every run:

    - ``constant``: 1.
    - ``correlation``: 1 if the metric is a correlation.

    For a run that does not risk a collapse (0 for the others):

    - ``gap``: the linearity gap, up to 1.
    - ``changes``: ρ, up to ``CHANGES``; only for regression and two classes.
    - ``overfit``: the gap times q; only for regression and two classes.
    - ``learnt``: ``d² · (1-R) · ρ/(1+ρ) · q/(1+q)``, an estimate of what the real run learns beyond its simulation. d²
      is the share of pairs of layers that can learn together. ``learnt`` shrinks with the simulated gain over guessing
      if that is below ``LITTLE``, because fitting the training examples alone is not learning. It is 0 if ``travel`` is
      above ``HASTY``.

    For a run that may collapse (0 for the others):

    - ``unstable``: 1.
    - ``blind``: 1 if no beginning of the real run was trained.
    - ``followed``: the share of what the simulation learnt in its beginning that the real run learnt too.
    - ``fall``, ``loss_fall``: guessing minus simulation, on the scale of the metric and of the loss, times ``1 -
      followed / CAUGHT_UP`` or 0 if that is negative.

    A run that gains little has nothing to lose by a collapse. It counts as one whose beginning learnt nothing.

    Args:
        simulation: Measurements of the simulated run.

    Returns:
        The features by name.
    """
    metric_scale = scale("eval_metric", simulation.metric_name)
    stable = not may_collapse(simulation.largest_step, simulation.travel, simulation.change_before_learning)
    measured = 0.0 if gains_little(simulation.gain) else simulation.followed
    followed = measured or 0.0
    gap = min(simulation.linearity_gap, 1.0) if stable else 0.0
    few_outputs = simulation.outputs <= 2
    diverged = not math.isfinite(simulation.eval_loss + simulation.fitted_loss)
    capped_loss = min(simulation.eval_loss, math.log(2)) if simulation.outputs == 2 else simulation.eval_loss
    ratio = OVERFIT if diverged else math.log(max(capped_loss, 1e-6) / max(simulation.fitted_loss, 1e-6))
    q, rho = (_inside(ratio, 0.0, OVERFIT), simulation.layer_changes) if stable else (0.0, 0.0)
    metric = simulation.eval_metric if math.isfinite(simulation.eval_metric) else simulation.guess
    loss = simulation.eval_loss if math.isfinite(simulation.eval_loss) else simulation.guess_loss
    carries_over = _inside((metric - simulation.guess) / LITTLE, 0.0, 1.0)
    not_hasty = float(simulation.travel <= HASTY)
    to_learn = not_hasty * simulation.depth**2 * left_open(simulation.frozen, rho) * carries_over

    def fall(on: Scale, guess: float, simulated: float) -> float:
        return 0.0 if stable else (1 - min(followed / CAUGHT_UP, 1.0)) * (on.to(guess) - on.to(simulated))

    return {
        "constant": 1.0,
        "correlation": float(simulation.metric_name == "pearson"),
        "gap": gap,
        "changes": _inside(rho, 0.0, CHANGES) if few_outputs else 0.0,
        "overfit": gap * q if few_outputs else 0.0,
        "learnt": to_learn * q / (1 + q),
        "unstable": float(not stable),
        "blind": float(not stable and measured is None),
        "followed": 0.0 if stable else followed,
        "fall": fall(metric_scale, simulation.guess, metric),
        "loss_fall": fall(_LOGARITHM, simulation.guess_loss, loss),
    }


class Correction(NamedTuple):
    """The shift of a quantity on its scale, and the standard deviation σ (``spread``) of real runs around the result.

    Attributes:
        shift: Added to the simulated value, on the quantity's scale.
        spread: σ, on the same scale.
    """

    shift: float
    spread: float


@cache
def learnt() -> dict[str, dict[str, dict[str, float]]]:
    """Return the learnt weights w (``shift``) and v (``spread``) of every quantity, from ``calibration.json``."""
    text = resources.files("foretune.forecast").joinpath("calibration.json").read_text(encoding="utf-8")
    return json.loads(text)["weights"]


def corrections(
    features: Mapping[str, float], weights: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
) -> dict[str, Correction]:
    """Predict the correction of every quantity.

    Args:
        features: The ``evidence`` about a simulated run.
        weights: Weights by quantity, as ``learnt`` returns them; by default those.

    Returns:
        The corrections by quantity.
    """

    def total(terms: Mapping[str, float]) -> float:
        return sum(weight * features[name] for name, weight in terms.items())

    return {
        quantity: Correction(total(parts["shift"]), math.exp(total(parts["spread"])))
        for quantity, parts in (weights or learnt()).items()
    }


def corrected(
    values: Mapping[str, Any], corrections: Mapping[str, Correction], share: float, metric_name: str
) -> dict[str, Any]:
    """Apply a share of the corrections to simulated values.

    Args:
        values: Simulated quantities by name. Where there is a ``..._std`` too, it is replaced.
        corrections: The correction of every quantity.
        share: Share of the shift and of the spread to apply, from 0 to 1.
        metric_name: Name of the metric, which decides its scale.

    Returns:
        The corrected values. Values that are None or not finite stay as they are.
    """
    result = dict(values)
    for quantity in QUANTITIES:
        before = result[quantity]
        if before is None or not math.isfinite(before):
            continue
        on, (shift, spread) = scale(quantity, metric_name), corrections[quantity]
        result[quantity] = on.back(on.to(before) + share * shift)
        if f"{quantity}_std" in result:
            result[f"{quantity}_std"] = share * spread * on.slope(result[quantity])
    return result
