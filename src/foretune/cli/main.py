"""Runs a command and turns errors into exit codes: 0 done, 2 the input is wrong, 1 a fault of ours."""

import errno
import os
import signal
import sys
from typing import Any, NoReturn

from foretune.errors import InputError

INTERRUPTED = 130
# What the system says no to: a full disk, or a place where nothing may be read or written.
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
    """Entry point of the ``foretune`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # a terminal that knows only ASCII gets question marks, no traceback
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    interrupt = _Interrupt()
    try:
        _run()
    except InputError as error:
        _refuse(str(error))
    except BaseException as error:
        if interrupt.came or isinstance(error, KeyboardInterrupt) or _code(error) == INTERRUPTED:
            print("\ninterrupted: nothing half-written was left; the same command goes on from here", file=sys.stderr)
            sys.exit(INTERRUPTED)
        said = _said(error)
        if said is None:
            raise
        _refuse(said)


def _run() -> None:
    import warnings

    from foretune.cli.app import app

    warnings.simplefilter("ignore", FutureWarning)  # deprecations inside transformers are not the user's to mend
    app()


class _Interrupt:
    """Remembers that Ctrl-C was pressed: libraries that are interrupted in an import raise errors of their own."""

    def __init__(self) -> None:
        self.came = False
        try:
            signal.signal(signal.SIGINT, self)
        except ValueError:  # not the main thread: somebody else handles it
            pass

    def __call__(self, number: int, frame: Any) -> None:
        """Note it and raise what Python raises.

        Raises:
            KeyboardInterrupt: Always.
        """
        self.came = True
        raise KeyboardInterrupt


def _code(error: BaseException) -> Any:
    return error.code if isinstance(error, SystemExit) else None


def _said(error: BaseException) -> str | None:
    """What an error of the system means to the user; None if it is none, and so a fault of ours."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        if isinstance(each, OSError) and each.errno in REFUSED:
            where = f"{each.filename}: " if each.filename else ""
            return f"{where}{each.strerror}. What was being written is gone; {REFUSED[each.errno]}."
    text = " ".join(str(each) for each in chain if isinstance(each, Exception))
    if any(word in text for word in FULL_DISK):
        return f"No space left on device. What was being written is gone; {REFUSED[errno.ENOSPC]}."
    if any(isinstance(each, MemoryError) for each in chain) or any(word in text for word in NO_MEMORY):
        return (
            "There is not enough memory. Use a smaller per_device_train_batch_size or data.max_length, or forecast "
            "with --sample 1000; foretune doctor estimates what a run needs."
        )
    return None


def _refuse(message: str) -> NoReturn:
    from rich.text import Text

    from foretune.cli.console import errors

    errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(2)
