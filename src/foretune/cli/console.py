"""What the commands share on the screen: two consoles, progress bars, tables of numbers."""

from collections.abc import Callable, Generator
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

out = Console()
errors = Console(stderr=True)


@contextmanager
def progress_bar(label: str) -> Generator[Callable[[int, int], None]]:
    """A bar on standard error; call what it gives with the work done and the work in all."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=errors, transient=True) as progress:
        task = progress.add_task(label, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def table(title: str, first: str, *columns: str) -> Table:
    """A table of numbers behind a column of text, which is folded where the screen is too narrow."""
    made = Table(title=title, box=SIMPLE_HEAD, title_justify="left", padding=(0, 1, 0, 0))
    made.add_column(first, overflow="fold")
    for column in columns:
        made.add_column(column, justify="right", no_wrap=True)
    return made


def metric(value: Any, name: str) -> str:
    """A metric for reading: accuracy in percent, other metrics to three places, a dash for none."""
    if value is None:
        return "–"
    return f"{100 * value:.1f}%" if name == "accuracy" else f"{value:.3f}"


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
