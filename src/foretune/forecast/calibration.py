r"""From a simulated run to a forecast: what real runs did that their tangents did not show.

Runs whose layers move far, until they fit the training examples, learn features on the way: their metric is usually
higher than simulated, and their evaluation loss rises further where they over-fit. How much was learnt
from runs that were really trained (``benchmarks/truth/calibrate.py``, ``docs/truth.md``): on a scale without bounds

.. math:: z_{real} = z_{simulated} + \sum_j w_j\, x_j \pm \sigma,\qquad \log\sigma = \sum_j v_j\, x_j

with z the logit of an accuracy, the inverse hyperbolic tangent of a correlation, or the logarithm of a loss, and
``x`` the ``evidence`` about a simulated run. σ holds what the correction leaves and what another seed changes. This is
an estimate from other tasks; it certifies nothing.
"""

import json
import math
from collections.abc import Callable, Mapping
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

from foretune.train.curve import Point

OVERFIT = 4.0  # where evidence of over-fitting stops to count
CHANGES = 3.0  # where the sum of relative changes stops to count
TRAVEL = 0.57  # relative change to which all steps may lead, above which runs were seen to collapse, some seeds or all
HASTY = 0.4  # likewise: above which real runs learn no more than their simulation
LOST = 1.25  # likewise: all runs of which that is more were seen to collapse
LITTLE = 0.05  # of the metric, that a simulation gains over guessing: of less a collapse loses nothing, fits tell less
STEP = 0.005  # relative change in one step, below which none were, however long
ASTRAY = 0.056  # relative change of the weights before anything is learnt, likewise
LATE = 0.022  # the same, from which runs often end far from their forecast
OPEN = 0.3  # of what frozen features leave open, by as much as layers move: likewise
AHEAD = 0.3  # log ratio of losses, of more than two classes, from which real runs are ahead of their simulation
SEVERAL = 4  # classes, above which forecasts of runs that end early are too good
UNLEARNT = 0.4  # of the loss of a uniform guess, from which a run of so many ends before it has learnt
FOLLOWED = 0.25  # of what its simulation learnt in the beginning: a run that learnt less then collapses
CAUGHT_UP = 0.5  # likewise: a run that learnt as much then ends where its simulation does
QUANTITIES = ("eval_metric", "eval_loss", "train_loss")


class MeanPoint(Point):
    """A point of a forecast's curve, with standard deviations of a real run around it (None where it says nothing)."""

    eval_loss_std: float | None
    eval_metric_std: float | None


class Scale(NamedTuple):
    """A map of a quantity onto all numbers, its inverse, and the inverse's derivative at a value of the quantity."""

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
    """The scale on which a quantity of ``QUANTITIES`` is corrected."""
    return SCALES[metric_name] if quantity == "eval_metric" else _LOGARITHM


def may_collapse(largest_step: float, travel: float, change_before_learning: float) -> bool:
    """Whether such runs were seen to collapse: large steps may lead too far in all, or lead astray before it learns."""
    return (largest_step > STEP and travel > TRAVEL) or change_before_learning > ASTRAY


def is_lost(largest_step: float, travel: float) -> bool:
    """Whether all such runs were seen to collapse, from any seed."""
    return largest_step > STEP and travel > LOST


def gains_little(gain: float) -> bool:
    """Whether a run that gains so much over guessing, as simulated, ends near it; likewise where that is no number."""
    return not gain >= LITTLE


def is_foregone(largest_step: float, travel: float, gain: float) -> bool:
    """Whether the beginning of a run that may collapse would tell nothing that matters."""
    return is_lost(largest_step, travel) or gains_little(gain)


def late(change_before_learning: float) -> bool:
    """Whether such runs were seen to end far from their forecasts: they learn features that tangents do not have."""
    return change_before_learning > LATE


def left_open(frozen: float, layer_changes: float) -> float:
    """``(1-R) ρ/(1+ρ)``: what frozen features leave to be learnt, by as much as the layers move."""
    return (1 - frozen) * (1 - 1 / (1 + layer_changes))


def much_open(frozen: float, layer_changes: float) -> bool:
    """Whether such runs were seen to end far from their forecasts: they learn what their tangents do not tell."""
    return left_open(frozen, layer_changes) > OPEN


def unlearnt(fitted_loss: float, outputs: int) -> bool:
    """Whether a run of several classes ends before it has learnt to tell its training examples apart.

    What real ones learn first grows most, so that they tell fewer classes apart by then than their simulation does.
    """
    return outputs > SEVERAL and fitted_loss > UNLEARNT * math.log(outputs)


def unstable(followed: float | None) -> bool:
    """Whether a run that may collapse is expected to: unless it was begun and learnt all the same."""
    return followed is None or followed < FOLLOWED


class Simulation(NamedTuple):
    """What is known of a simulated run.

    Attributes:
        largest_step: Largest relative change of the linear weights in one of the first steps.
        travel: How far its steps may lead, see ``foretune.forecast.movement.Movement``.
        change_before_learning: Their relative change when training losses begin to fall.
        linearity_gap: Linearity gap at the end.
        layer_changes: Sum of the adapted layers' relative changes at the end.
        depth: Share of the network's layers that have adapters.
        fitted_loss: Loss of the training examples at the end.
        eval_loss: Evaluation loss at the end.
        eval_metric: Metric at the end.
        guess: Metric of guessing.
        guess_loss: Loss of guessing.
        metric_name: What the metric is.
        outputs: How many outputs the network has: one of regression, else one for each class.
        frozen: What the features tell of the labels before training, see ``foretune.forecast.frozen``.
        followed: How much of what it learnt in its beginning the real run learnt too; None if that was not begun.
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
        """Metric over guessing."""
        return self.eval_metric - self.guess

    @property
    def is_foregone(self) -> bool:
        """Whether the beginning of such a run, if it may collapse, would tell nothing that matters."""
        return is_foregone(self.largest_step, self.travel, self.gain)


def evidence(found: Simulation) -> dict[str, float]:
    """What a simulated run tells about the real one beyond its result.

    Returns:
        ``constant`` (1), ``correlation`` (1 where that is the metric) and, unless the run may collapse, ``gap`` (up to
        1) and for regression and two classes ``changes``, the sum ρ of the layers' relative changes (up to
        ``CHANGES``), ``overfit``, the gap times ``q = log(eval_loss / fitted_loss)`` between 0 and ``OVERFIT`` (which
        it is where the run diverged), in which an ``eval_loss`` of two classes counts up to log 2: while the labels of
        training examples are not yet more probable than the others, nothing is over-fitted; and ``learnt``,
        ``d² · (1-R) · ρ/(1+ρ) · q/(1+q)`` with d the share of the layers that have adapters, d² that of the pairs of
        layers that can learn together, and R what frozen features tell: they leave the less to be learnt. It counts in
        part where the simulated gain over guessing is below ``LITTLE``: fitting alone is no learning; and not where the
        steps may lead more than ``HASTY`` away. Of more classes, of which those that are learnt first outgrow the
        others, there is ``learnt`` alone, ``d² · (1-R) · ρ/(1+ρ) · (q-b)/(1+q)`` above 0 with all of the loss in q and
        ``b = AHEAD``. Else, where a run may collapse, ``unstable`` (1), ``blind`` (1 if it was not begun), ``followed``
        and, how far guessing is from the simulation on their scales, times how far a real beginning is from
        ``CAUGHT_UP``, ``fall`` of the metric and ``loss_fall``; foregone runs count as begun, and as if they had learnt
        nothing.
    """
    on = scale("eval_metric", found.metric_name)
    stable = not may_collapse(found.largest_step, found.travel, found.change_before_learning)
    known = 0.0 if found.is_foregone else found.followed
    followed = known or 0.0
    near = min(found.linearity_gap, 1.0) if stable else 0.0
    few = found.outputs <= 2
    diverged = not math.isfinite(found.eval_loss + found.fitted_loss)
    unlearnt = min(found.eval_loss, math.log(2)) if found.outputs == 2 else found.eval_loss
    ratio = OVERFIT if diverged else math.log(max(unlearnt, 1e-6) / max(found.fitted_loss, 1e-6))
    fitted, rho = (_inside(ratio, 0.0, OVERFIT), found.layer_changes) if stable else (0.0, 0.0)
    metric = found.eval_metric if math.isfinite(found.eval_metric) else found.guess
    loss = found.eval_loss if math.isfinite(found.eval_loss) else found.guess_loss
    borne_out = _inside((metric - found.guess) / LITTLE, 0.0, 1.0)
    calm = float(found.travel <= HASTY)
    to_learn = calm * found.depth**2 * left_open(found.frozen, rho) * borne_out

    def fall(on: Scale, guess: float, simulated: float) -> float:
        return 0.0 if stable else (1 - min(followed / CAUGHT_UP, 1.0)) * (on.to(guess) - on.to(simulated))

    return {
        "constant": 1.0,
        "correlation": float(found.metric_name == "pearson"),
        "gap": near,
        "changes": _inside(rho, 0.0, CHANGES) if few else 0.0,
        "overfit": near * fitted if few else 0.0,
        "learnt": to_learn * max(fitted - (0.0 if few else AHEAD), 0.0) / (1 + fitted),
        "unstable": float(not stable),
        "blind": float(not stable and known is None),
        "followed": 0.0 if stable else followed,
        "fall": fall(on, found.guess, metric),
        "loss_fall": fall(_LOGARITHM, found.guess_loss, loss),
    }


class Correction(NamedTuple):
    """What is added to a quantity on its scale, and the standard deviation σ of a real run around it."""

    shift: float
    spread: float


@cache
def learnt() -> dict[str, dict[str, dict[str, float]]]:
    """The weights w (``shift``) and v (``spread``) of every quantity."""
    text = resources.files("foretune.forecast").joinpath("calibration.json").read_text(encoding="utf-8")
    return json.loads(text)["weights"]


def corrections(
    known: Mapping[str, float], weights: Mapping[str, Mapping[str, Mapping[str, float]]] | None = None
) -> dict[str, Correction]:
    """The correction of every quantity, given the evidence."""

    def total(terms: Mapping[str, float]) -> float:
        return sum(weight * known[name] for name, weight in terms.items())

    return {
        quantity: Correction(total(parts["shift"]), math.exp(total(parts["spread"])))
        for quantity, parts in (weights or learnt()).items()
    }


def corrected(
    values: Mapping[str, Any], known: Mapping[str, Correction], share: float, metric_name: str
) -> dict[str, Any]:
    """Simulated values with a share of the corrections, and of the spread of real runs wherever there is a ``..._std``.

    What is not a number stays so.
    """
    found = dict(values)
    for quantity in QUANTITIES:
        before = found[quantity]
        if before is None or not math.isfinite(before):
            continue
        on, (shift, spread) = scale(quantity, metric_name), known[quantity]
        found[quantity] = on.back(on.to(before) + share * shift)
        if f"{quantity}_std" in found:
            found[f"{quantity}_std"] = share * spread * on.slope(found[quantity])
    return found
