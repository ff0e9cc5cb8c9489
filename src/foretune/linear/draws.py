"""Random numbers of one training step that do not depend on the order in which they are drawn."""

import torch


class Draws:
    """Gives a random generator for every purpose. One number from torch's own generator seeds all of them.

    So a model that is trained in lockstep with others draws the same numbers as when it is trained alone.
    """

    def __init__(self) -> None:
        self.seed = int(torch.randint(2**31, ()))

    def generator(self, purpose: int) -> torch.Generator:
        """A new generator for a purpose. The same purpose always gets the same numbers."""
        return torch.Generator().manual_seed(self.seed + purpose)
