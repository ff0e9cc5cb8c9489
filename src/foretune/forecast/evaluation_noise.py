r"""The error of a metric that is measured on few evaluation examples.

The error bars of a forecast were learnt from runs with ``EXAMPLES`` evaluation examples. Fewer examples measure the
metric less exactly, by the textbook standard error. On the metric's scale without bounds (see
``foretune.forecast.calibration``), n examples add the variance

.. math:: \left(\frac1n - \frac1{\mathrm{EXAMPLES}}\right) \frac1{p(1-p)}

to the logit of an accuracy p, and ``1 / (n - 3) - 1 / (EXAMPLES - 3)`` to the inverse hyperbolic tangent of a
correlation (Fisher's z). This is an estimate: the simulated run is evaluated on the same examples, so a part of the
error cancels, and how large that part is differs between tasks.
"""

import math

EXAMPLES = 600  # evaluation examples of the runs from which error bars were learnt
FEWEST = 5  # fewer examples count as this many, because Fisher's formula needs more than three


def evaluation_spread(metric_name: str, value: float, examples: int) -> float:
    """Return the standard deviation that a small evaluation set adds to the metric, on its scale.

    Args:
        metric_name: ``accuracy`` or ``pearson``.
        value: The forecast metric.
        examples: Number of evaluation examples.

    Returns:
        The standard deviation; 0 if there are ``EXAMPLES`` or more.
    """
    count = max(examples, FEWEST)
    if count >= EXAMPLES:
        return 0.0
    if metric_name == "pearson":
        return math.sqrt(1 / (count - 3) - 1 / (EXAMPLES - 3))
    share = min(max(value, 1 / (count + 2)), 1 - 1 / (count + 2))  # as if one example more were right, and one wrong
    return math.sqrt((1 / count - 1 / EXAMPLES) / (share * (1 - share)))
