"""Where runs start: the head and the adapters of each seed, and tangents of that head."""

import copy
from collections.abc import Callable

import torch
from transformers import set_seed

from foretune.tangents import Adapter, Head, Tangents, draw_adapters
from foretune.task import Candidate, Task


class Starts:
    """What the runs of each seed start from, and the tangents that belong to it.

    A new head is drawn from the seed, and tangents are taken along its rows (theory.md section 6): along those of
    another head, a run would hardly move.

    Args:
        task: The task.
        tangents: Of the task, whose model has the head of one seed.
        collect: Makes those of the same task with the head of another seed.
    """

    def __init__(self, task: Task, tangents: Tangents, collect: Callable[[Task, int], Tangents] | None = None) -> None:
        self.task, self.first, self.collect = task, tangents, collect
        self.seen: dict[int, tuple[Head, torch.Tensor]] = {}
        self.taken: dict[int, Tangents] = {}

    def draw(self, candidate: Candidate, seed: int) -> tuple[list[Adapter], Head]:
        """Adapters and head that the candidate would start from with this seed."""
        head, state = self._start(seed)
        return draw_adapters(self.task.model, candidate.peft_config(), state), copy.deepcopy(head)

    def tangents(self, seed: int) -> Tangents:
        """Tangents of the head that this seed starts from, made once.

        Raises:
            ValueError: They are not there, and nothing makes them.
        """
        if seed not in self.taken:
            own, known = (head.state_dict().values() for head in (self._start(seed)[0], self.first.head))
            if all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(own, known, strict=True)):
                self.taken[seed] = self.first
            elif self.collect is None:
                raise ValueError(f"seed {seed} starts from another head: collect tangents of task.with_seed({seed})")
            else:
                self.taken[seed] = self.collect(self.task.with_seed(seed), seed)
        return self.taken[seed]

    @property
    def passes(self) -> list[Tangents]:
        """All tangents that there are by now."""
        return [self.first, *(each for each in self.taken.values() if each is not self.first)]

    def _start(self, seed: int) -> tuple[Head, torch.Tensor]:
        if seed not in self.seen:
            with torch.random.fork_rng(devices=[]):
                set_seed(seed)
                model = self.task.build_model(seed)
                self.seen[seed] = self.first.head.with_modules(model).cpu(), torch.get_rng_state()
        return self.seen[seed]
