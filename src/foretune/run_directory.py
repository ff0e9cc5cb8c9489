"""The run directory: one foretune command writes to it at a time."""

import fcntl
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from foretune.errors import InputError
from foretune.results import TEMPORARY

LOCK = ".foretune.lock"
_locks: dict[Path, IO[str]] = {}  # the run directories that this process has locked


@contextmanager
def run_directory(path: str | Path) -> Generator[Path]:
    """Create a run directory if needed, and keep other foretune commands from writing to it inside the block.

    What commands that were killed left half-written is removed. Blocks of one process may be nested.

    Raises:
        InputError: It is a file, nothing can be created in it, or another command is writing to it.
    """
    path = Path(path)
    resolved = path.resolve()
    if resolved in _locks:
        yield path
        return
    try:
        path.mkdir(parents=True, exist_ok=True)
        file = _locked(path)
    except OSError as error:
        raise InputError(
            f"output directory {path}",
            f"cannot write there ({error.strerror})",
            "name a directory you can write to with -o",
        ) from error
    with file:
        _locks[resolved] = file
        try:
            _remove_leftovers(path)
            yield path
        finally:
            del _locks[resolved]
            (path / LOCK).unlink(missing_ok=True)


def _locked(path: Path) -> IO[str]:
    """The lock file of a run directory, locked for this process; the system unlocks it however the process ends.

    Raises:
        InputError: Another process has locked it.
    """
    while True:
        file = (path / LOCK).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            file.close()
            raise InputError(
                f"output directory {path}",
                f"another foretune command is writing to it (process {owner})",
                "wait until that command has ended, or name another directory with -o",
            ) from error
        except OSError:  # some network file systems have no locks
            return file
        if _is_still_there(file, path / LOCK):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()  # its owner removed it between our opening and locking it


def _is_still_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders of commands that were killed, at any depth at which results are kept."""
    for depth in ("", "*/", "train/*/", "train/*/*/"):
        for leftover in path.glob(f"{depth}{TEMPORARY}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
