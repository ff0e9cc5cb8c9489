"""Search for a better fine-tune: over placements of adapters, ranks and learning rates, from one set of tangents."""

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

WHOLE = 2  # half steps in a whole step of the learning rate, which is a factor of 3
FARTHEST = 10  # how many half steps the search may go from the file's own learning rate
RANKS = 4  # factor between the ranks that are tried
KEPT = 2  # how many of the best results of a round go into the next round
GIVEN_UP = 0.005  # loss of the metric that is accepted for fewer parameters: the typical regret (docs/truth.md)


@dataclass(frozen=True, repr=False)
class Recommendation:
    """The result of a search.

    Attributes:
        searched: All forecasts that were made, best first.
        recommended: The best one that is not at risk of a collapse.
        base: The forecast of the fine-tune that the file itself describes.
        lighter: The forecast with the fewest parameters among those that lose at most half a point against the
            recommended one; None if that is the recommended one itself.
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
    """A search in rounds, where every round starts from the best results so far.

    Args:
        starts: The start of every run, and tangents for every layer in the space.
        task: The task.
        space: The fine-tunes that may be chosen.
        bar: Makes a progress bar for a label.
    """

    def __init__(self, starts: Starts, task: Task, space: Space, bar: Bar = lambda _: nullcontext()) -> None:
        self.starts, self.task, self.space, self.bar = starts, task, space, bar
        self.kernels, self.found = Kernels(), dict[Point, Forecast]()  # the forecast of every point tried

    def run(self) -> Recommendation:
        """Search, and return what to run.

        The rounds are learning rates, kinds of modules, halves of the layers, ranks, and learning rates in between.
        The space's other candidates are forecast last, and compete.

        Returns:
            The recommendation.
        """
        own = self.space.own
        self._rates("learning rates", [own])
        self._follow(own)
        step = max(point.step for point in self.found) if self._nothing else self._best()[0].step
        self._rates("modules", [Point(placement, own.rank, step) for placement in self.space.placements])
        self._rates("layers", [Point(half, own.rank, p.step) for p in self._places() for half in p.placement.halves])
        ranks = max(1, own.rank // RANKS), own.rank * RANKS
        self._rates("ranks", [Point(p.placement, rank, p.step) for p in self._places() for rank in ranks])
        self._try("rates in between", [moved(point, by) for point in self._best()[:KEPT] for by in (-1, 1)])
        tried = {result.candidate.name for result in self.found.values()}
        others = [candidate for candidate in self.space.others.values() if candidate.name not in tried]
        more = self._forecast("the file's candidates", others) if others else []
        return recommended([*self.found.values(), *more], self.found[own], self.task)

    def _follow(self, own: Point) -> None:
        """Try further learning rates while the outermost one is the best, and higher ones until a run learns."""
        while (step := self._beyond()) is not None and abs(step) <= FARTHEST:
            self._try("learning rates", [Point(own.placement, own.rank, step)])

    def _beyond(self) -> int | None:
        """The step of the next learning rate to try; None if there is nothing to try.

        Runs that learn nothing end at a chance metric, which does not say in which direction to search.
        """
        best, last = self._best()[0], max(self.found, key=lambda point: point.step)
        if (self._nothing or best == last) and not self.found[last].may_collapse:
            return last.step + WHOLE
        lowest = min(point.step for point in self.found)
        return lowest - WHOLE if best.step == lowest and not self._nothing else None

    @property
    def _nothing(self) -> bool:
        """Whether no run that was tried learns more than a little."""
        return all(gains_little(result.known.gain) for result in self.found.values())

    def _rates(self, label: str, points: Iterable[Point]) -> None:
        self._try(label, [moved(point, by) for point in points for by in (0, -WHOLE, WHOLE)])

    def _try(self, label: str, points: Iterable[Point]) -> None:
        new = [point for point in dict.fromkeys(points) if point not in self.found]
        if new:
            self.found |= zip(new, self._forecast(label, [self.space.candidate(point) for point in new]), strict=True)

    def _forecast(self, label: str, candidates: Sequence[Candidate]) -> list[Forecast]:
        """The forecasts of the candidates, in their order."""
        with self.bar(f"searching {label}") as progress:
            results = forecast(self.starts, self.task, candidates, kernels=self.kernels, progress=progress)
        by_name = {result.candidate.name: result for result in results}
        return [by_name[candidate.name] for candidate in candidates]

    def _best(self) -> list[Point]:
        """All points that were tried, best first."""
        points = {id(result): point for point, result in self.found.items()}
        return [points[id(result)] for result in ranked(self.found.values(), self.task)]

    def _places(self) -> list[Point]:
        """The best points of the ``KEPT`` best placements, one per placement."""
        best: dict[Placement, Point] = {}
        for point in self._best():
            best.setdefault(point.placement, point)
        return list(best.values())[:KEPT]


def moved(point: Point, by: int) -> Point:
    """Return the same point with a learning rate that is ``by`` half steps higher."""
    return Point(point.placement, point.rank, point.step + by)


def recommended(forecasts: Sequence[Forecast], base: Forecast, task: Task) -> Recommendation:
    """Choose what to run.

    Args:
        forecasts: Forecasts of all fine-tunes to choose from.
        base: The forecast of what the file describes; it is one of them.
        task: The task.

    Returns:
        The recommendation. If every run may collapse, it recommends the first one of the ranking.
    """
    searched = ranked(forecasts, task)
    safe = [result for result in searched if not result.may_collapse] or searched[:1]
    sign = 1.0 if higher_is_better(task.metric_name) else -1.0
    good_enough = [result for result in safe if sign * (safe[0].eval_metric - result.eval_metric) <= GIVEN_UP]
    lighter = min(good_enough, key=lambda result: result.trainable_parameters)
    return Recommendation(searched, safe[0], base, None if lighter is safe[0] else lighter)
