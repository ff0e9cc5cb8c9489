"""The figures of the candidates' NTKs, each kernel factored once."""

import json
from collections.abc import Sequence
from dataclasses import replace

import torch

from foretune.kernel import RiskBounds, Spectrum, Summary, ntk, risk_summary, summary
from foretune.linear import Modes, best_strength
from foretune.tangents import Adapter, Tangents
from foretune.task import Candidate

ENTRIES = 512  # rows of a kernel whose figures are given: its eigenvalues take the cube of it


class Figures(Summary):
    """The figures of a candidate's NTK; risks after as many steps as its run takes."""

    risk_bounds: RiskBounds


class Kernels:
    """The figures of NTKs, each factored once: candidates that differ only in training share one."""

    def __init__(self) -> None:
        self.seen: dict[str, tuple[Summary, Spectrum, torch.Tensor]] = {}
        self.examples: dict[int, Tangents] = {}  # by the seed of the tangents that they are of

    def figures(self, tangents: Tangents, candidate: Candidate, adapters: Sequence[Adapter], steps: int) -> Figures:
        """The figures of the candidate's NTK with the adapters that it starts from, with λ chosen by leave-one-out."""
        key = json.dumps([candidate.peft_dict(), candidate.seed], sort_keys=True)
        if key not in self.seen:
            if candidate.seed not in self.examples:
                self.examples[candidate.seed] = _spread(tangents)
            modes = Modes.of(ntk(self.examples[candidate.seed], adapters))
            found = summary(modes.kernel, best_strength(modes))
            self.seen[key] = found, replace(modes.spectrum, eigenvectors=None), modes.coefficients
        found, spectrum, coefficients = self.seen[key]
        risks = risk_summary(
            spectrum, coefficients, num_train=found["examples"], strength=found["strength"], steps=steps
        )
        return Figures(**found, risk_bounds=risks)


def _spread(tangents: Tangents) -> Tangents:
    """As many training examples, of all lengths, as make a kernel of ``ENTRIES`` rows at most."""
    outputs = max(1, tangents.outputs.shape[1] - 1)
    count = min(tangents.num_train, max(2, ENTRIES // outputs))
    chosen = torch.linspace(0, tangents.num_train - 1, count).long()
    return tangents.sample(tangents.stored[: tangents.num_train][chosen])
