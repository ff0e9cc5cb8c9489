"""Reading the files that a user names: only ordinary ones, and never without end."""

import stat
import zlib
from pathlib import Path

from foretune.errors import InputError
from foretune.task.problems import shown

LARGEST_UNPACKED = 2 * 2**30  # bytes


class FileFault(InputError):
    """An error about a file, which is not said twice where it is itself the place that messages name.

    Args:
        path: The file.
        where: The field that names it, or its own path.
        found: What is wrong with it.
        fix: What to do.
        line: Where in it, if that can be said.
    """

    def __init__(self, path: Path | str, where: str, found: str, fix: str, line: int | None = None) -> None:
        at = f"{path}, line {line}" if line else str(path)
        super().__init__(*((at, found) if where == str(path) else (where, f"{at}: {found}")), fix)


def located(text: str, folder: Path, where: str) -> str:
    """The absolute path that ``text`` means: relative ones start at ``folder``, and ``~`` is a home folder.

    Args:
        text: The path as it was written.
        folder: Where relative paths start.
        where: The field that messages name.

    Raises:
        InputError: It is an address, holds a NUL character, or begins with ``~`` and the name of nobody.
    """
    if "://" in text:
        raise InputError(where, f"{shown(text)} is no path", "download what is there and write the path of the file")
    if "\0" in text:
        raise InputError(where, f"the path {shown(text)} holds a NUL character", "write a path without it")
    try:
        return str(folder / Path(text).expanduser())
    except RuntimeError as error:
        home = text.split("/")[0]
        fix = f"write the folder in full, or ./{home} if its name begins with a tilde"
        raise InputError(where, f"{home} in {shown(text)} is nobody's home folder", fix) from error


def read_file(path: Path, where: str, fix: str, largest: int | None = None) -> bytes:
    """The bytes of an ordinary file.

    Args:
        path: The file.
        where: The field that names it, or its own path.
        fix: What messages advise.
        largest: Size in bytes above which it is refused; None: any size.

    Raises:
        FileFault: It is missing, no ordinary file, too large, or cannot be read.
    """
    if "\0" in str(path):
        raise FileFault(path, where, "the path holds a NUL character", fix)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise FileFault(path, where, "cannot be read: it is a folder", fix)
        if not stat.S_ISREG(status.st_mode):  # reading a pipe or a device may never end
            raise FileFault(path, where, "cannot be read: it is a pipe or a device, not a file", fix)
        if largest is not None and status.st_size > largest:
            raise FileFault(path, where, f"it has {status.st_size:,} bytes", f"{fix} of at most {largest:,} bytes")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise FileFault(path, where, "no such file", fix) from error
    except OSError as error:
        raise FileFault(path, where, f"cannot be read ({error.strerror})", fix) from error


def unpacked(content: bytes, path: Path, where: str) -> bytes:
    """What a gzip file holds.

    Raises:
        FileFault: It is not one, is cut off, or holds too much.
    """
    parts, size, rest = [], 0, content
    fix = "compress it again with gzip, or give the file as it was before"
    try:
        while rest.strip(b"\0"):  # a file may hold several compressed parts, and zeros after the last
            reader = zlib.decompressobj(wbits=31)
            parts.append(reader.decompress(rest, LARGEST_UNPACKED - size + 1))
            size += len(parts[-1])
            if size > LARGEST_UNPACKED:
                raise FileFault(
                    path, where, f"it unpacks to more than {LARGEST_UNPACKED:,} bytes", "give a smaller file"
                )
            if not reader.eof:
                raise FileFault(path, where, "it ends within its compressed data", fix)
            rest = reader.unused_data
    except zlib.error as error:
        raise FileFault(path, where, f"not a gzip file ({error})", fix) from error
    return b"".join(parts)


def as_text(content: bytes, path: Path, where: str) -> str:
    """The text of a UTF-8 file, without a byte order mark.

    Raises:
        FileFault: It is something else; the message names the line.
    """
    fix = "save the file as UTF-8"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FileFault(path, where, "not UTF-8 text", fix, line) from error
    if "\0" in text:
        raise FileFault(path, where, "a NUL character, as in UTF-16", fix, text[: text.index("\0")].count("\n") + 1)
    return text
