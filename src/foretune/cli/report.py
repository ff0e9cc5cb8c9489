"""``foretune report``: write a page from the results in a run directory."""

from foretune.cli.console import say
from foretune.cli.options import RunDirectory

EXAMPLES = ("foretune report runs/movie",)


def command(directory: RunDirectory) -> None:
    """Write report.html, one self-contained page with the ranking, curves, spectra, warnings and configuration."""
    from foretune.report import write_report

    say(f"wrote {write_report(directory)}")
