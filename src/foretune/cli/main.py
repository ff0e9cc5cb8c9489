"""Run a command and turn errors into exit codes: 0 for success, 2 for wrong input, 1 for an error in foretune."""

import errno
import os
import signal
import sys
from types import FrameType
from typing import Any, NoReturn

from foretune.errors import InputError

INTERRUPTED = 130
RETRY = 0.05  # seconds after which a Ctrl-C that could not be raised is raised again
# Errors of the system that the user can fix (a full disk, missing permissions), and how.
REFUSED = {
    errno.ENOSPC: "make room, or name another disk with -o",
    errno.EDQUOT: "make room, or name another disk with -o",
    errno.EACCES: "change its permissions, or name another directory",
    errno.EPERM: "change its permissions, or name another directory",
    errno.EROFS: "name a directory on a disk that can be written to",
}
FULL_DISK = ("No space left on device", "StorageFull", "PytorchStreamWriter failed", "file write failed")
NO_MEMORY = (
    "can't allocate memory",
    "out of memory",
    "Cannot allocate memory",
    "bad_alloc",
    "failed to map segment",
    "can't start new thread",
)
TOO_LITTLE = (
    "There is not enough memory. Use a smaller per_device_train_batch_size or data.max_length, or forecast "
    "with --sample 1000; foretune doctor estimates how much memory a run needs."
)


def main() -> None:
    """Run the ``foretune`` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    for stream in (sys.stdout, sys.stderr):  # print question marks on a terminal that has only ASCII
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    with _Interrupt() as interrupt:
        try:
            _run()
        except InputError as error:
            _refuse(TOO_LITTLE if _lacks_memory(_chain(error)[1:]) else str(error))
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
    """Handles Ctrl-C inside the block: it raises KeyboardInterrupt as soon as Python can pass that on.

    C++ code that loads a library ends the process when it meets a Python exception, so the exception waits until
    imports have ended. Python drops exceptions inside a ``__del__`` or a callback, so there it is raised once more.
    ``came`` remembers that Ctrl-C was pressed, because a library may turn the exception into another one.
    """

    def __init__(self) -> None:
        self.came = False

    def __enter__(self) -> "_Interrupt":
        self.hook = sys.unraisablehook
        try:
            self.handlers = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGALRM)}
        except ValueError:  # not the main thread, where another handler is in place
            self.handlers = {}
            return self
        sys.unraisablehook = self._dropped
        return self

    def __exit__(self, *_: object) -> None:
        if self.handlers:
            signal.setitimer(signal.ITIMER_REAL, 0)
            sys.unraisablehook = self.hook
        for number, handler in self.handlers.items():
            signal.signal(number, handler)

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle Ctrl-C, or the alarm that stands for an earlier one.

        Raises:
            KeyboardInterrupt: No import is running, or Ctrl-C was pressed before.
        """
        again = self.came and number == signal.SIGINT
        self.came = True
        if again or not _is_importing(frame):
            raise KeyboardInterrupt
        self._try_again()

    def _dropped(self, unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt):
            self._try_again()
        else:
            self.hook(unraisable)

    def _try_again(self) -> None:
        signal.setitimer(signal.ITIMER_REAL, RETRY)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether a frame runs inside an import statement."""
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


def _code(error: BaseException) -> Any:
    return error.code if isinstance(error, SystemExit) else None


def _said(error: BaseException) -> str | None:
    """The message for an error that the system caused; None for any other error, which is a fault of foretune."""
    chain = _chain(error)
    for link in chain:
        if isinstance(link, OSError) and link.errno in REFUSED:
            where = f"{link.filename}: " if link.filename else ""
            return f"{where}{link.strerror}. No unfinished file was left; {REFUSED[link.errno]}."
    if any(word in str(link) for link in chain if isinstance(link, Exception) for word in FULL_DISK):
        return f"No space left on device. No unfinished file was left; {REFUSED[errno.ENOSPC]}."
    return TOO_LITTLE if _lacks_memory(chain) else None


def _chain(error: BaseException) -> list[BaseException]:
    """The error and the errors that led to it."""
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    return chain


def _lacks_memory(chain: list[BaseException]) -> bool:
    """Whether one of the errors says that there is too little memory, to load a library or to start a thread too."""
    return any(
        isinstance(link, MemoryError) or (isinstance(link, Exception) and any(word in str(link) for word in NO_MEMORY))
        for link in chain
    )


def _refuse(message: str) -> NoReturn:
    from rich.text import Text

    from foretune.cli.console import errors

    errors.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(2)
