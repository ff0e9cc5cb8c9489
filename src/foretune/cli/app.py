"""The commands and their help."""

import typer

from foretune.cli import certify, compare, demo, doctor, forecast, recommend, report, train

app = typer.Typer(
    name="foretune",
    help="Tells you how a fine-tune will go before you train it.",
    epilog="Start with: foretune demo -o runs/demo",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_show_locals=False,
)
for module in (doctor, forecast, recommend, train, compare, certify, report, demo):
    app.command(module.__name__.rsplit(".", 1)[-1], epilog=module.EXAMPLES)(module.command)
