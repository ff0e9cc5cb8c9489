"""Locks a run directory, so that only one foretune command writes to it at a time."""

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
    """Lock a run directory inside the block, and create it if needed.

    Unfinished files of killed commands are removed. Blocks of one process may be nested.

    Raises:
        InputError: The path is a file, cannot be written to, or another command is writing to it.
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
            "name a directory that you can write to with -o",
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
    """Lock the lock file of a run directory for this process. The system unlocks it when the process ends.

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
        except OSError:  # some network file systems do not support locks
            return file
        if _is_still_there(file, path / LOCK):
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            return file
        file.close()  # the owner removed the file after we opened it and before we locked it


def _is_still_there(file: IO[str], path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files and folders of killed commands, in all folders that hold results."""
    for depth in ("", "*/", "train/*/", "train/*/*/"):
        for leftover in path.glob(f"{depth}{TEMPORARY}*"):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)
