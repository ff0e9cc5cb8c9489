"""``foretune report``: one page from whatever results there are."""

from foretune.cli.console import say
from foretune.cli.options import RunDirectory

EXAMPLES = ("foretune report runs/movie",)


def command(directory: RunDirectory) -> None:
    """Write report.html: one self-contained page of the ranking, curves, spectra, warnings and configuration."""
    from foretune.report import write_report

    say(f"wrote {write_report(directory)}")
