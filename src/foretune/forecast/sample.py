r"""Correct a forecast that simulated only a sample of the training examples.

If a sample of m examples stands for all n, the simulated run takes as many steps as the real run. It therefore sees
each example n/m times as often, and fits it more closely. The evaluation loss is above the training loss by the
*optimism*, which is proportional to 1/m (Efron 2004; 2σ²p/m for linear models). With all examples the difference
would therefore be smaller by

.. math:: (L_{eval} - L_{train})_+ \,(1 - m/n)

A quarter of this comes off the evaluation loss, and the rest is added to the training loss. These shares were measured
on runs of 2,000 examples, simulated with 500 and 1,000 of them (``docs/log.md``). Metrics did not change. This is an
estimate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.forecast.calibration import Correction

EVALUATION = 0.25  # share of the difference that comes off the evaluation loss
OPEN = 2.0  # standard deviation that sampling adds to a quantity, on its scale, in units of sqrt(1/m - 1/n)


@dataclass(frozen=True)
class Sample:
    """The sizes of a sample of the training examples that stands for all of them.

    Attributes:
        size: Number m of examples in the sample.
        total: Number n of all training examples.
    """

    size: int
    total: int

    def excess(self, eval_loss: float, fitted_loss: float) -> float:
        """Return by how much the evaluation and training losses would be closer with all examples.

        Args:
            eval_loss: Mean loss of the evaluation examples at the end.
            fitted_loss: Mean loss of the training examples at the end.

        Returns:
            ``(eval_loss - fitted_loss)₊ (1 - m/n)``; 0 for a run that diverged, which cannot be corrected.
        """
        optimism = eval_loss - fitted_loss
        return optimism * (1 - self.size / self.total) if 0 < optimism < math.inf else 0.0

    def widened(self, correction: Correction) -> Correction:
        """Return the correction with a larger spread, which includes the error of sampling."""
        sampling_error = OPEN * math.sqrt(1 / self.size - 1 / self.total)
        return correction._replace(spread=math.hypot(correction.spread, sampling_error))


def without(excess: float, values: Mapping[str, Any]) -> dict[str, Any]:
    """Remove an excess from the difference of evaluation and training loss.

    Args:
        excess: By how much the losses are too far apart.
        values: Quantities by name. ``eval_loss``, ``train_loss`` and ``fitted_loss`` are changed, others are not.

    Returns:
        The quantities, corrected.
    """
    shares = {"eval_loss": -EVALUATION, "train_loss": 1 - EVALUATION, "fitted_loss": 1 - EVALUATION}
    return {
        name: value if value is None or name not in shares else value + shares[name] * excess
        for name, value in values.items()
    }
