"""Where runs start: the head and the adapters that a seed draws, and the tangents of that head.

*Tangents* are the inputs of the adapted layers and the gradients at their outputs, kept for every example.
"""

import copy
from collections.abc import Callable

import torch
from transformers import set_seed

from foretune.tangents import Adapter, Head, Tangents, draw_adapters
from foretune.task import Candidate, Task


class Starts:
    """Draws what the runs of a seed start from, and keeps the tangents that belong to that seed.

    The seed draws a new head, and the tangents follow the rows of that head (docs/theory.md section 6). A run that
    used tangents of another head would hardly move.

    Args:
        task: The task.
        tangents: Tangents of the task, made with the head of one seed.
        collect: Collects tangents of the same task with the head of another seed; it is given that task and the seed.
    """

    def __init__(self, task: Task, tangents: Tangents, collect: Callable[[Task, int], Tangents] | None = None) -> None:
        self.task, self.first, self.collect = task, tangents, collect
        self.heads: dict[int, tuple[Head, torch.Tensor]] = {}  # by seed, with the state of the generator after it
        self.by_seed: dict[int, Tangents] = {}

    def draw(self, candidate: Candidate, seed: int) -> tuple[list[Adapter], Head]:
        """Draw the adapters and the head that the candidate starts from with this seed."""
        head, state = self._start(seed)
        return draw_adapters(self.task.model, candidate.peft_config(), state), copy.deepcopy(head)

    def tangents(self, seed: int) -> Tangents:
        """Return the tangents of the head that this seed starts from; they are collected once.

        Args:
            seed: The seed that draws the head.

        Returns:
            The first tangents if they have the same head, otherwise new ones.

        Raises:
            ValueError: The seed has another head, and there is no ``collect`` that could make its tangents.
        """
        if seed not in self.by_seed:
            wanted, first = (head.state_dict().values() for head in (self._start(seed)[0], self.first.head))
            if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(wanted, first, strict=True)):
                self.by_seed[seed] = self.first
            elif self.collect is None:
                raise ValueError(f"seed {seed} starts from another head: collect tangents of task.with_seed({seed})")
            else:
                self.by_seed[seed] = self.collect(self.task.with_seed(seed), seed)
        return self.by_seed[seed]

    @property
    def passes(self) -> list[Tangents]:
        """All tangents that were collected so far."""
        return [self.first, *(tangents for tangents in self.by_seed.values() if tangents is not self.first)]

    def _start(self, seed: int) -> tuple[Head, torch.Tensor]:
        if seed not in self.heads:
            with torch.random.fork_rng(devices=[]):
                set_seed(seed)
                model = self.task.build_model(seed)
                self.heads[seed] = self.first.head.with_modules(model).cpu(), torch.get_rng_state()
        return self.heads[seed]
