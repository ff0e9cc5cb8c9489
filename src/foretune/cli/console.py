"""Output that the commands share: two consoles, progress, and tables of numbers.

Names and labels of the user are printed as they are, and never read as markup.
"""

import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

out = Console(markup=False, highlight=False, emoji=False)
errors = Console(stderr=True, markup=False, highlight=False, emoji=False)

SILENCE = 20.0  # seconds between two lines of progress if there is no terminal


@contextmanager
def progress_bar(label: str) -> Generator[Callable[[int, int], None]]:
    """Show progress on standard error: a bar on a terminal, otherwise a line from time to time.

    Args:
        label: The text beside the bar.

    Yields:
        A function to call with the amount of work done and of all work.
    """
    if not errors.is_terminal:
        yield _Lines(label)
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


class _Lines:
    """Shows progress as lines of text, if there is no terminal for a bar."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Print how far the work is, if the last line is old enough."""
        now = time.monotonic()
        if now - self.last >= SILENCE and done:
            left = (now - self.started) * (total - done) / done
            errors.print(f"{self.label}: {done} of {total}, about {duration(left)} left")
            self.last = now


def say(text: str) -> None:
    """Print a line of text, wrapped at the width of the screen."""
    out.print(text)


def verbatim(text: str) -> None:
    """Print a line that the user may copy; it is never wrapped."""
    out.print(text, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning among the results."""
    out.print(Text.assemble(("! ", "yellow"), text))


def note(text: str) -> None:
    """Print a remark about the work itself on standard error."""
    errors.print(Text.assemble(("note: ", "yellow"), text), soft_wrap=True)


def about_input(warnings: Iterable[str], left_out: Iterable[dict[str, str]] = ()) -> None:
    """Print the warnings about data and model, and the candidates that are left out."""
    for warning in warnings:
        warn(warning)
    for candidate in left_out:
        warn(f"left out {candidate['name']}: {candidate['reason']}")


def table(title: str, first: str, *columns: str) -> Table:
    """Make a table with one column of text and further columns of numbers.

    Args:
        title: The title.
        first: Heading of the column of text, which is wrapped if the screen is too narrow.
        columns: Headings of the columns of numbers, which are never wrapped.

    Returns:
        A table without rows.
    """
    empty = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    empty.add_column(first, overflow="fold")
    for column in columns:
        empty.add_column(column, justify="right", no_wrap=True)
    return empty


def metric(value: Any, name: str) -> str:
    """Format a metric: accuracy in percent, other metrics with three decimals, None as a dash."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if name == "accuracy" else f"{value:.3f}"


def difference(value: Any, name: str, sign: str = "") -> str:
    """Format a difference of metrics: accuracy in points, other metrics with three decimals, None as a dash."""
    if value is None:
        return "–"
    return f"{100 * value:{sign}.1f} points" if name == "accuracy" else f"{value:{sign}.3f}"


def number(value: Any) -> str:
    """Format a number with about three digits; None as a dash."""
    if value is None:
        return "–"
    if abs(value) >= 1e5 and not isinstance(value, int):
        return f"{value:.0e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.3g}"


def count(value: int) -> str:
    """Format a large count, such as 74,498 as 74k."""
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k" if value >= 1e4 else f"{value:,}"


def duration(seconds: float) -> str:
    """Format a time, such as 40 s, 12 min or 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
