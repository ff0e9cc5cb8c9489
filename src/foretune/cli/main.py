"""Runs a command and turns errors into exit codes: 0 done, 2 the input is wrong, 1 a fault of ours."""

import errno
import os
import sys
import warnings
from typing import NoReturn

from rich.markup import escape

from foretune.cli.app import app
from foretune.cli.console import errors
from foretune.errors import InputError


def main() -> None:
    """Entry point of the ``foretune`` command.

    Raises:
        OSError: A file cannot be read or written, for another reason than a full disk.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.simplefilter("ignore", FutureWarning)  # deprecations inside transformers are not the user's to mend
    try:
        app()
    except InputError as error:
        _refuse(str(error))
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _refuse(f"{error.strerror}: what was being written is gone. Make room, or name another disk with -o.")
    except KeyboardInterrupt:
        errors.print("[yellow]interrupted:[/] nothing half-written was left; the same command goes on from here")
        sys.exit(130)


def _refuse(message: str) -> NoReturn:
    errors.print(f"[bold red]error:[/] {escape(message)}", highlight=False, soft_wrap=True)
    sys.exit(2)
