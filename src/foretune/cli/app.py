"""The command line application: its commands and their help texts."""

import inspect
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


def _paragraphs(docstring: str | None) -> str:
    """A docstring as help text, with every paragraph on one line, so that the terminal can wrap it."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(docstring or "").split("\n\n"))


for module in (doctor, forecast, recommend, train, compare, certify, report, demo):
    name, examples = module.__name__.rsplit(".", 1)[-1], "\n\n".join(("Examples:", *module.EXAMPLES))
    app.command(name, help=_paragraphs(module.command.__doc__), epilog=examples)(module.command)


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
    """Forecast how a fine-tune will go before you train it."""
