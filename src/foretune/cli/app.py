"""The commands and their help."""

from typing import Annotated

import typer

from foretune.cli import certify, compare, demo, doctor, forecast, recommend, report, train
from foretune.version import __version__

app = typer.Typer(
    name="foretune",
    epilog="Start with: foretune demo -o runs/demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for module in (doctor, forecast, recommend, train, compare, certify, report, demo):
    app.command(module.__name__.rsplit(".", 1)[-1], epilog=module.EXAMPLES)(module.command)


def _version(asked: bool) -> bool:
    if asked:
        typer.echo(f"foretune {__version__}")
        raise typer.Exit
    return asked


@app.callback()
def everything(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Tells you how a fine-tune will go before you train it."""
