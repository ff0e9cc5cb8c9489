"""Numbers that describe a candidate's NTK; every kernel is factored once.

The *NTK* (neural tangent kernel) of two examples is the inner product of the gradients of their outputs.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from foretune.kernel import RiskBounds, Spectrum, Summary, ntk, risk_summary, summary
from foretune.linear import Modes, best_strength
from foretune.tangents import Adapter, Tangents
from foretune.task import Candidate

ENTRIES = 512  # rows of a kernel at most; computing its eigenvalues takes time that grows with their cube


class Figures(Summary):
    """The numbers that describe a candidate's NTK, with bounds on the training risk after all steps of its run."""

    risk_bounds: RiskBounds


class Kernels:
    """Computes the figures of NTKs, and factors every kernel once.

    Candidates that differ only in their training section share a kernel.
    """

    def __init__(self) -> None:
        self.factored: dict[str, tuple[Summary, Spectrum, torch.Tensor]] = {}
        self.examples: dict[int, Tangents] = {}  # by the seed of their tangents

    def figures(self, tangents: Tangents, candidate: Candidate, adapters: Sequence[Adapter], steps: int) -> Figures:
        """Return the figures of a candidate's NTK; the ridge strength λ is chosen by leave-one-out.

        Args:
            tangents: Tangents of the candidate's seed.
            candidate: The candidate.
            adapters: The adapters that its run starts from.
            steps: Number of optimiser steps of its run.

        Returns:
            The figures, computed on at most ``ENTRIES`` rows of the kernel.
        """
        key = json.dumps([candidate.peft_dict(), candidate.seed], sort_keys=True)
        if key not in self.factored:
            if candidate.seed not in self.examples:
                self.examples[candidate.seed] = _spread(tangents)
            modes = Modes.of(ntk(self.examples[candidate.seed], adapters))
            numbers = summary(modes.kernel, best_strength(modes))
            self.factored[key] = numbers, replace(modes.spectrum, eigenvectors=None), modes.coefficients
        numbers, spectrum, coefficients = self.factored[key]
        risks = risk_summary(
            spectrum, coefficients, num_train=numbers["examples"], strength=numbers["strength"], steps=steps
        )
        return Figures(**numbers, risk_bounds=risks)


def _spread(tangents: Tangents) -> Tangents:
    """Training examples of all lengths, as many as give a kernel of at most ``ENTRIES`` rows."""
    outputs = max(1, tangents.outputs.shape[1] - 1)
    count = min(tangents.num_train, max(2, ENTRIES // outputs))
    chosen = torch.linspace(0, tangents.num_train - 1, count).long()
    return tangents.sample(tangents.stored[: tangents.num_train][chosen])
