"""Formats numbers for people."""

from dataclasses import dataclass

from foretune.forecast.compare import higher_is_better, is_share

NONE = "–"
Number = float | int


@dataclass(frozen=True)
class Metric:
    """Formats values and differences of the evaluation metric.

    Args:
        name: The name of the metric, such as ``accuracy``.
    """

    name: str | None

    @property
    def label(self) -> str:
        """The metric's name in running text."""
        return (self.name or "metric").replace("_", " ")

    @property
    def share(self) -> bool:
        """Whether the metric is shown in percent."""
        return is_share(self.name)

    @property
    def sign(self) -> int:
        """1 if higher is better, otherwise −1."""
        return 1 if higher_is_better(self.name) else -1

    @property
    def tick_format(self) -> str:
        """The d3 format string for an axis."""
        return ".2~%" if self.share else ".3~g"

    @property
    def hover_format(self) -> str:
        """The d3 format string for a value."""
        return ".1%" if self.share else ".3f"

    def value(self, value: Number | None) -> str:
        """Format a value: ``0.8734`` is ``87.3%`` for a metric in percent, otherwise ``0.873``."""
        if value is None:
            return NONE
        return f"{100 * value:.1f}%" if self.share else fixed(value)

    def difference(self, value: Number | None, signed: bool = False) -> str:
        """Format a difference. For a metric in percent the unit is points (hundredths)."""
        if value is None:
            return NONE
        if not self.share:
            return fixed(value, signed)
        text = _minus(f"{100 * value:{'+' if signed else ''}.1f}")
        return f"{text} {'point' if text.strip('+−') == '1.0' else 'points'}"

    def short_difference(self, value: Number | None, signed: bool = False) -> str:
        """Format a difference without its unit, for tables."""
        return self.difference(value, signed).partition(" ")[0]


def fixed(value: Number | None, signed: bool = False) -> str:
    """Format a number with three decimals."""
    return NONE if value is None else _minus(f"{value:{'+' if signed else ''}.3f}")


def scientific(value: Number | None) -> str:
    """Format a number with three digits, or as two digits and a power of ten, ``1.2e4``, if it is large or small."""
    if value is None:
        return NONE
    if value == 0 or 0.01 <= abs(value) < 999.5:
        return _minus(f"{value:.3g}")
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return _minus(f"{mantissa}e{int(exponent)}")


def count(value: Number | None) -> str:
    """Format a whole number with separators between thousands."""
    return NONE if value is None else f"{value:,.0f}"


def seconds(value: Number | None) -> str:
    """Format a duration: ``0.42 s``, ``12 s``, ``3.3 min`` or ``2.1 h``."""
    if value is None:
        return NONE
    if value < 59.5:
        return f"{value:.2g} s" if value < 9.95 else f"{value:.0f} s"
    return f"{value / 60:.1f} min" if value < 3597 else f"{value / 3600:.1f} h"


def correlation(value: Number | None) -> str:
    """Format a correlation with two decimals."""
    return NONE if value is None else _minus(f"{value:.2f}")


def ratio(value: Number | None) -> str:
    """Format a ratio of costs with two digits."""
    return NONE if value is None else f"{value:.2g}×"


def size(value: Number | None) -> str:
    """Format a number of bytes in binary units, such as MiB."""
    if value is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def _minus(text: str) -> str:
    return text.replace("-", "−") if float(text) else text.lstrip("-+")
