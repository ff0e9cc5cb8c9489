"""The knee of a Pareto front."""

from collections.abc import Sequence

import numpy as np

Point = tuple[float, ...]


def knee_point(points: Sequence[Point]) -> tuple[list[Point], Point]:
    """The Pareto front of points whose coordinates should all be small, sorted by the last one, and its knee.

    The knee is that of ``evolo-moead`` 0.1.0 (``core/geometry.py``). The front is scaled to [0, 1] in every coordinate,
    and the knee is the inner point whose two neighbours are seen under the largest angle, or the first point if there
    are no inner ones. A right angle would be a sharper knee than a straight line, but the package takes the largest
    angle, and its choice is what is tested here.

    >>> knee_point([(0.0, 4.0), (1.0, 1.0), (4.0, 0.0), (4.0, 4.0), (1.0, 1.0)])[1]
    (1.0, 1.0)
    """
    unique = sorted(set(points), key=lambda point: point[::-1])
    front = [each for each in unique if not any(_dominates(other, each) for other in unique)]
    values = np.array(front)
    span = values.max(0) - values.min(0)
    scaled = (values - values.min(0)) / np.where(span > 0, span, 1)
    angles = [_angle(scaled[i - 1] - scaled[i], scaled[i + 1] - scaled[i]) for i in range(1, len(front) - 1)]
    return front, front[1 + int(np.argmax(angles))] if angles else front[0]


def _dominates(one: Point, other: Point) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))


def _angle(one: np.ndarray, other: np.ndarray) -> float:
    lengths = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(np.arccos(np.clip(one @ other / lengths, -1, 1))) if lengths > 0 else 0.0
