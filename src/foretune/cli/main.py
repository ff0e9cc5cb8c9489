"""Runs a command and turns errors into exit codes: 0 done, 2 the input is wrong, 1 a fault of ours."""

import os
import sys
import warnings

from rich.markup import escape

from foretune.cli.app import app
from foretune.cli.console import errors
from foretune.errors import InputError


def main() -> None:
    """Entry point of the ``foretune`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)  # deprecations inside transformers are not the user's to mend
    try:
        app()
    except InputError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted:[/] nothing half-written was left; the same command goes on from here")
        sys.exit(130)
