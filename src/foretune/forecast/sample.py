r"""From a sample of the training examples to all of them.

Where m of n training examples stand for all, a simulated run takes the same steps as the real one but sees each example
n/m times as often, and fits them closer. The evaluation loss exceeds the training loss by an optimism that goes with
1/m (Efron 2004, for linear models 2σ²p/m), so that on all examples the difference would be smaller by

.. math:: (L_{eval} - L_{train})_+ \,(1 - m/n)

of which a quarter was seen to come off the evaluation loss and the rest to go onto the training loss, on runs of 2,000
examples that 500 and 1,000 stood for (``docs/log.md``). Metrics stayed where they were. This is an estimate.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from foretune.forecast.calibration import Correction

EVALUATION = 0.25  # part of the optimism that comes off the evaluation loss
OPEN = 2.0  # standard deviation of what a sample leaves open, on a quantity's scale, in units of sqrt(1/m - 1/n)


@dataclass(frozen=True)
class Sample:
    """Training examples that stand for all of them.

    Attributes:
        size: How many m.
        total: For how many n.
    """

    size: int
    total: int

    def excess(self, eval_loss: float, fitted_loss: float) -> float:
        """How much less the losses of evaluation and training examples would differ with all examples.

        0 for a run that diverged: nothing of it can be brought to all examples.
        """
        found = eval_loss - fitted_loss
        return found * (1 - self.size / self.total) if 0 < found < math.inf else 0.0

    def widened(self, correction: Correction) -> Correction:
        """A correction whose spread holds what the sample leaves open."""
        open_ = OPEN * math.sqrt(1 / self.size - 1 / self.total)
        return correction._replace(spread=math.hypot(correction.spread, open_))


def without(excess: float, values: Mapping[str, Any]) -> dict[str, Any]:
    """Losses (``eval_loss``, ``train_loss``, ``fitted_loss``) as they would be without that part of the difference."""
    parts = {"eval_loss": -EVALUATION, "train_loss": 1 - EVALUATION, "fitted_loss": 1 - EVALUATION}
    return {
        name: value if value is None or name not in parts else value + parts[name] * excess
        for name, value in values.items()
    }
