"""Small SVG pictures: points and lines on linear or logarithmic axes."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 420, 300, 62, 12, 34, 46
FONT = 'font-family="sans-serif" font-size="11"'
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#999999")  # Okabe and Ito's


@dataclass(frozen=True)
class Series:
    """Points, with or without a line and error bars; a point whose y is None is left out."""

    name: str
    x: Sequence[float]
    y: Sequence[float | None]
    line: bool = True
    colour: int | None = None  # the number of another series, whose colour this one has; it is dashed
    bars: Sequence[float] = ()  # half the length of every error bar, if there are any


@dataclass(frozen=True)
class Axis:
    """An axis: its label, whether it is logarithmic, and names of its positions in place of numbers."""

    label: str
    log: bool = False
    names: Sequence[str] = field(default=())


def picture(title: str, x: Axis, y: Axis, series: Sequence[Series]) -> str:
    """A self-contained SVG."""
    points = [(a, b) for each in series for a, b in zip(each.x, each.y, strict=True) if b is not None]
    across = _Scale(x, [a for a, _ in points], LEFT, WIDTH - RIGHT)
    bars = [(b, bar) for each in series for b, bar in zip(each.y, each.bars, strict=False) if b is not None]
    up = _Scale(
        y, [b for _, b in points] + [b + sign * bar for b, bar in bars for sign in (-1, 1)], HEIGHT - BOTTOM, TOP
    )
    height = HEIGHT + 15 * ((len(series) + 1) // 2)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" {FONT}>',
        f"<title>{escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>',
        _text(WIDTH / 2, 18, title, "middle", "font-weight='bold'"),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x.label, "middle"),
        _text(14, HEIGHT / 2, y.label, "middle", f"transform='rotate(-90 14 {HEIGHT / 2:g})'"),
    ]
    for value, label in across.ticks():
        at = across(value)
        parts += [_line(at, TOP, at, HEIGHT - BOTTOM), _text(at, HEIGHT - BOTTOM + 14, label, "middle")]
    for value, label in up.ticks():
        at = up(value)
        parts += [_line(LEFT, at, WIDTH - RIGHT, at), _text(LEFT - 5, at + 4, label, "end")]
    for i, each in enumerate(series):
        colour = COLOURS[(i if each.colour is None else each.colour) % len(COLOURS)]
        placed = [(across(a), up(b)) for a, b in zip(each.x, each.y, strict=True) if b is not None]
        if each.line:
            path = " ".join(f"{a:.1f},{b:.1f}" for a, b in placed)
            dash = ' stroke-dasharray="5 3"' if each.colour is not None else ""
            parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>')
        for a, b, bar in zip(each.x, each.y, each.bars, strict=False):
            parts += [] if b is None else [_line(across(a), up(b - bar), across(a), up(b + bar), colour)]
        fill = colour if each.colour is None else "white"
        parts += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{fill}" stroke="{colour}"/>' for a, b in placed]
        left, below = LEFT + 170 * (i % 2), HEIGHT + 8 + 15 * (i // 2)
        parts.append(f'<circle cx="{left}" cy="{below - 4}" r="4" fill="{fill}" stroke="{colour}"/>')
        parts.append(_text(left + 9, below, each.name, "start"))
    return "\n".join([*parts, "</svg>"]) + "\n"


class _Scale:
    def __init__(self, axis: Axis, values: Sequence[float], low: float, high: float) -> None:
        self.axis, self.pixels = axis, (low, high)
        placed = [self._place(value) for value in values] or [0.0, 1.0]
        margin = 0.06 * (max(placed) - min(placed)) or 0.5
        self.ends = min(placed) - margin, max(placed) + margin

    def __call__(self, value: float) -> float:
        share = (self._place(value) - self.ends[0]) / (self.ends[1] - self.ends[0])
        return self.pixels[0] + share * (self.pixels[1] - self.pixels[0])

    def ticks(self) -> list[tuple[float, str]]:
        if self.axis.names:
            return [(float(i), name) for i, name in enumerate(self.axis.names)]
        low, high = self.ends
        if self.axis.log and high - low > 1.2:
            step = math.ceil((high - low) / 7)
            return [(10.0**k, f"{10.0**k:g}") for k in range(math.ceil(low), math.floor(high) + 1, step)]
        low, high = (10**low, 10**high) if self.axis.log else (low, high)
        rough = (high - low) / 5
        step = min((unit * 10 ** math.floor(math.log10(rough)) for unit in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
        return [(k * step, f"{k * step:g}") for k in range(math.ceil(low / step), math.floor(high / step) + 1)]

    def _place(self, value: float) -> float:
        return math.log10(value) if self.axis.log else value


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd") -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"/>'
