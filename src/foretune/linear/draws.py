"""Random numbers of one training step that depend on what they are for, and not on who else draws some."""

import torch


class Draws:
    """Generators for each of many purposes, seeded by one number that is drawn from torch's own generator.

    So models that are trained in lockstep draw what each would draw alone.
    """

    def __init__(self) -> None:
        self.seed = int(torch.randint(2**31, ()))

    def generator(self, purpose: int) -> torch.Generator:
        """That of a purpose, always from its beginning."""
        return torch.Generator().manual_seed(self.seed + purpose)
