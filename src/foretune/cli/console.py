"""What the commands share on the screen: two consoles, progress, tables of numbers. Nothing of the user's is markup."""

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

SILENCE = 20.0  # seconds between two lines of progress where there is no terminal


@contextmanager
def progress_bar(label: str) -> Generator[Callable[[int, int], None]]:
    """Progress on standard error: a bar on a terminal, else a line now and then.

    Call what it gives with the work done and the work in all.
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
    """Progress as lines of text, where no bar can be drawn."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = self.last = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        """Say how far the work is, if nothing was said for a while."""
        now = time.monotonic()
        if now - self.last >= SILENCE and done:
            left = (now - self.started) * (total - done) / done
            errors.print(f"{self.label}: {done} of {total}, about {duration(left)} left")
            self.last = now


def say(text: str) -> None:
    """Print a line of text, folded at the screen's width."""
    out.print(text)


def verbatim(text: str) -> None:
    """Print something to copy: it is never folded."""
    out.print(text, soft_wrap=True)


def warn(text: str) -> None:
    """Print a warning on the screen of the results."""
    out.print(Text.assemble(("! ", "yellow"), text))


def note(text: str) -> None:
    """Print a remark about the work itself on standard error."""
    errors.print(Text.assemble(("note: ", "yellow"), text), soft_wrap=True)


def about_input(warnings: Iterable[str], left_out: Iterable[dict[str, str]] = ()) -> None:
    """Print what the run file's data and model give cause for, and which candidates are left out."""
    for warning in warnings:
        warn(warning)
    for candidate in left_out:
        warn(f"left out {candidate['name']}: {candidate['reason']}")


def table(title: str, first: str, *columns: str) -> Table:
    """A table of numbers behind a column of text, which is folded where the screen is too narrow."""
    made = Table(title=Text(title), box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    made.add_column(first, overflow="fold")
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def metric(value: Any, name: str) -> str:
    """A metric for reading: accuracy in percent, other metrics to three places, a dash for none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if name == "accuracy" else f"{value:.3f}"


def difference(value: Any, name: str, sign: str = "") -> str:
    """A difference of metrics for reading: points for a share such as accuracy, else to three places."""
    if value is None:
        return "–"
    return f"{100 * value:{sign}.1f} points" if name == "accuracy" else f"{value:{sign}.3f}"


def number(value: Any) -> str:
    """A number for reading, a dash for none."""
    if value is None:
        return "–"
    if abs(value) >= 1e5 and not isinstance(value, int):
        return f"{value:.0e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1e3 else f"{value:.3g}"


def count(value: int) -> str:
    """A large count for reading: 74,498 as 74k."""
    return f"{value / 1e6:.1f}M" if value >= 1e6 else f"{value / 1e3:.0f}k" if value >= 1e4 else f"{value:,}"


def duration(seconds: float) -> str:
    """A time for reading: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
