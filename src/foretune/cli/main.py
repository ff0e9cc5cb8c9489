"""Run a command and turn errors into exit codes: 0 for success, 2 for wrong input, 1 for an error in foretune."""

import errno
import os
import signal
import sys
from typing import Any, NoReturn

from foretune.errors import InputError

INTERRUPTED = 130
# Errors of the system that the user can fix (a full disk, missing permissions), and how.
REFUSED = {
    errno.ENOSPC: "make room, or name another disk with -o",
    errno.EDQUOT: "make room, or name another disk with -o",
    errno.EACCES: "change its permissions, or name another directory",
    errno.EPERM: "change its permissions, or name another directory",
    errno.EROFS: "name a directory on a disk that can be written to",
}
FULL_DISK = ("No space left on device", "StorageFull", "PytorchStreamWriter failed", "file write failed")
NO_MEMORY = ("can't allocate memory", "out of memory", "Cannot allocate memory", "bad_alloc")


def main() -> None:
    """Run the ``foretune`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # print question marks on a terminal that has only ASCII
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    interrupt = _Interrupt()
    try:
        _run()
    except InputError as error:
        _refuse(str(error))
    except BaseException as error:
        if interrupt.came or isinstance(error, KeyboardInterrupt) or _code(error) == INTERRUPTED:
            print("\ninterrupted: no unfinished file was left; run the same command to continue", file=sys.stderr)
            sys.exit(INTERRUPTED)
        message = _said(error)
        if message is None:
            raise
        _refuse(message)


def _run() -> None:
    import warnings

    from foretune.cli.app import app

    warnings.simplefilter("ignore", FutureWarning)  # the user cannot fix deprecations inside transformers
    app()


class _Interrupt:
    """Remembers that Ctrl-C was pressed, because a library that is interrupted while it loads raises another error."""

    def __init__(self) -> None:
        self.came = False
        try:
            signal.signal(signal.SIGINT, self)
        except ValueError:  # not the main thread, where another handler is in place
            pass

    def __call__(self, number: int, frame: Any) -> None:
        """Remember it, and raise the usual exception.

        Raises:
            KeyboardInterrupt: Always.
        """
        self.came = True
        raise KeyboardInterrupt


def _code(error: BaseException) -> Any:
    return error.code if isinstance(error, SystemExit) else None


def _said(error: BaseException) -> str | None:
    """The message for an error that the system caused; None for any other error, which is a fault of foretune."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for link in chain:
        if isinstance(link, OSError) and link.errno in REFUSED:
            where = f"{link.filename}: " if link.filename else ""
            return f"{where}{link.strerror}. No unfinished file was left; {REFUSED[link.errno]}."
    text = " ".join(str(link) for link in chain if isinstance(link, Exception))
    if any(word in text for word in FULL_DISK):
        return f"No space left on device. No unfinished file was left; {REFUSED[errno.ENOSPC]}."
    if any(isinstance(link, MemoryError) for link in chain) or any(word in text for word in NO_MEMORY):
        return (
            "There is not enough memory. Use a smaller per_device_train_batch_size or data.max_length, or forecast "
            "with --sample 1000; foretune doctor estimates how much memory a run needs."
        )
    return None


def _refuse(message: str) -> NoReturn:
    from rich.text import Text

    from foretune.cli.console import errors

    errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(2)
