"""Which fine-tune to run instead: a search over places, ranks and learning rates, all from the same tangents."""

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from peft import LoraConfig

from foretune.brief import brief
from foretune.forecast.calibration import gains_little
from foretune.forecast.compare import higher_is_better
from foretune.forecast.expectation import Forecast
from foretune.forecast.figures import Kernels
from foretune.forecast.forecast import Bar, forecast, ranked
from foretune.forecast.starts import Starts
from foretune.task import Candidate, Task
from foretune.task.space import Placement, Point, Space

WHOLE = 2  # half steps of the learning rate in a whole one
FARTHEST = 10  # half steps to which the file's own may be left
RANKS = 4  # between ranks that are tried
KEPT = 2  # best ones of a round that go into the next
GIVEN_UP = 0.005  # of the metric, for fewer parameters: about what a first choice costs (docs/truth.md)


@dataclass(frozen=True, repr=False)
class Recommendation:
    """What a search found.

    Attributes:
        searched: Forecasts of all that it looked at, best first, those that may collapse last.
        recommended: The best one that is not of those.
        base: What the file itself describes.
        lighter: What has the fewest parameters of those that give up half a point at most; None: the recommended one.
    """

    searched: list[Forecast]
    recommended: Forecast
    base: Forecast
    lighter: Forecast | None
    __repr__ = brief

    @property
    def peft_config(self) -> LoraConfig:
        """The recommended adapter, ready for ``peft.get_peft_model``."""
        return self.recommended.candidate.peft_config()


class Search:
    """A search of a space, round by round, each from the best of those before.

    Args:
        starts: Tangents of the task for every layer in the space, and heads and adapters.
        task: The task.
        space: What may be chosen.
        bar: Makes a progress bar for a label.
    """

    def __init__(self, starts: Starts, task: Task, space: Space, bar: Bar = lambda _: nullcontext()) -> None:
        self.starts, self.task, self.space, self.bar = starts, task, space, bar
        self.kernels, self.found = Kernels(), dict[Point, Forecast]()

    def run(self) -> Recommendation:
        """Learning rates first, then kinds of modules, halves of the layers, ranks, and learning rates in between.

        The space's other candidates compete.
        """
        own = self.space.own
        self._rates("learning rates", [own])
        self._follow(own)
        step = max(each.step for each in self.found) if self._nothing else self._best()[0].step
        self._rates("modules", [Point(each, own.rank, step) for each in self.space.placements])
        self._rates("layers", [Point(half, own.rank, p.step) for p in self._places() for half in p.placement.halves])
        ranks = max(1, own.rank // RANKS), own.rank * RANKS
        self._rates("ranks", [Point(p.placement, rank, p.step) for p in self._places() for rank in ranks])
        self._try("between", [moved(point, by) for point in self._best()[:KEPT] for by in (-1, 1)])
        known = {each.candidate.name for each in self.found.values()}
        others = [each for each in self.space.others.values() if each.name not in known]
        more = self._forecast("own candidates", others) if others else []
        return recommended([*self.found.values(), *more], self.found[own], self.task)

    def _follow(self, own: Point) -> None:
        """Go on to learning rates beyond the last for as long as that is the best, and higher until one learns."""
        while (step := self._beyond()) is not None and abs(step) <= FARTHEST:
            self._try("learning rates", [Point(own.placement, own.rank, step)])

    def _beyond(self) -> int | None:
        """The learning rate to go on to, if any.

        Metrics of runs that learn nothing are accidents, and say of no direction that it is the better one.
        """
        best, last = self._best()[0], max(self.found, key=lambda point: point.step)
        if (self._nothing or best == last) and not self.found[last].may_collapse:
            return last.step + WHOLE
        lowest = min(point.step for point in self.found)
        return lowest - WHOLE if best.step == lowest and not self._nothing else None

    @property
    def _nothing(self) -> bool:
        """Whether none that was tried learns more than a little."""
        return all(gains_little(found.known.gain) for found in self.found.values())

    def _rates(self, label: str, points: Iterable[Point]) -> None:
        self._try(label, [moved(point, by) for point in points for by in (0, -WHOLE, WHOLE)])

    def _try(self, label: str, points: Iterable[Point]) -> None:
        new = [point for point in dict.fromkeys(points) if point not in self.found]
        if new:
            self.found |= zip(new, self._forecast(label, [self.space.candidate(point) for point in new]), strict=True)

    def _forecast(self, label: str, candidates: Sequence[Candidate]) -> list[Forecast]:
        """Their forecasts, in this order."""
        with self.bar(f"searching {label}") as progress:
            found = forecast(self.starts, self.task, candidates, kernels=self.kernels, progress=progress)
        named = {each.candidate.name: each for each in found}
        return [named[candidate.name] for candidate in candidates]

    def _best(self) -> list[Point]:
        """All points tried, best first."""
        points = {id(found): point for point, found in self.found.items()}
        return [points[id(found)] for found in ranked(self.found.values(), self.task)]

    def _places(self) -> list[Point]:
        """The best point of each of the best placements."""
        best: dict[Placement, Point] = {}
        for point in self._best():
            best.setdefault(point.placement, point)
        return list(best.values())[:KEPT]


def moved(point: Point, by: int) -> Point:
    """The same at a learning rate so many half steps higher."""
    return Point(point.placement, point.rank, point.step + by)


def recommended(forecasts: Sequence[Forecast], base: Forecast, task: Task) -> Recommendation:
    """What to run of these; ``base`` is one of them."""
    searched = ranked(forecasts, task)
    safe = [each for each in searched if not each.may_collapse] or searched[:1]
    sign = 1.0 if higher_is_better(task.metric_name) else -1.0
    enough = [each for each in safe if sign * (safe[0].eval_metric - each.eval_metric) <= GIVEN_UP]
    lighter = min(enough, key=lambda each: each.trainable_parameters)
    return Recommendation(searched, safe[0], base, None if lighter is safe[0] else lighter)
