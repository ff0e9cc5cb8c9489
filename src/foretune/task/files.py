"""Reads the files that a user names. Only ordinary files are read, up to a largest size."""

import stat
import zlib
from pathlib import Path

from foretune.errors import InputError
from foretune.task.problems import shown

LARGEST_DECOMPRESSED = 2 * 2**30  # bytes


class FileFault(InputError):
    """An ``InputError`` about a file; its message gives the path once, also where ``where`` is the path.

    Args:
        path: The file.
        where: The field that names the file, such as ``run.yaml: data.train``, or the path of the file.
        found: What is wrong with the file.
        fix: What to do.
        line: The number of the faulty line; None if the fault has no line.
    """

    def __init__(self, path: Path | str, where: str, found: str, fix: str, line: int | None = None) -> None:
        at = f"{path}, line {line}" if line else str(path)
        super().__init__(*((at, found) if where == str(path) else (where, f"{at}: {found}")), fix)


def absolute_path(text: str, folder: Path, where: str) -> str:
    """Make a path absolute, and replace ``~`` by the home folder.

    Args:
        text: The path as the user wrote it.
        folder: The folder at which relative paths start.
        where: The field that messages name.

    Returns:
        The absolute path.

    Raises:
        InputError: The text is a web address, contains a NUL character, or starts with the home folder of an unknown
            user.
    """
    if "://" in text:
        raise InputError(where, f"{shown(text)} is a web address, not a path", "download the file and write its path")
    if "\0" in text:
        raise InputError(where, f"the path {shown(text)} contains a NUL character", "write a path without it")
    try:
        return str(folder / Path(text).expanduser())
    except RuntimeError as error:
        home = text.split("/")[0]
        fix = f"write the whole path, or ./{home} if the folder's name starts with a tilde"
        raise InputError(where, f"{shown(text)} starts with {home}, but there is no such home folder", fix) from error


def read_file(path: Path, where: str, fix: str, largest: int | None = None) -> bytes:
    """Read an ordinary file.

    Args:
        path: The file.
        where: The field that names the file, or the path of the file.
        fix: The advice in messages.
        largest: The largest size that is read, in bytes; None for any size.

    Returns:
        The content of the file.

    Raises:
        FileFault: The file is missing, is not an ordinary file, is too large, or cannot be read.
    """
    if "\0" in str(path):
        raise FileFault(path, where, "the path contains a NUL character", fix)
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


def decompressed(content: bytes, path: Path, where: str) -> bytes:
    """Decompress a gzip file.

    Args:
        content: The content of the file.
        path: The file, for messages.
        where: The field that names the file, or the path of the file.

    Returns:
        The decompressed content.

    Raises:
        FileFault: The file is not a gzip file, is cut off, or has too much content.
    """
    parts, size, rest = [], 0, content
    fix = "compress it again with gzip, or give the uncompressed file"
    try:
        while rest.strip(b"\0"):  # a file may have several compressed parts, and zeros after the last one
            reader = zlib.decompressobj(wbits=31)
            parts.append(reader.decompress(rest, LARGEST_DECOMPRESSED - size + 1))
            size += len(parts[-1])
            if size > LARGEST_DECOMPRESSED:
                raise FileFault(
                    path,
                    where,
                    f"it has more than {LARGEST_DECOMPRESSED:,} bytes after decompression",
                    "give a smaller file",
                )
            if not reader.eof:
                raise FileFault(path, where, "it is cut off within its compressed data", fix)
            rest = reader.unused_data
    except zlib.error as error:
        raise FileFault(path, where, f"not a gzip file ({error})", fix) from error
    return b"".join(parts)


def as_text(content: bytes, path: Path, where: str) -> str:
    """Decode a UTF-8 file and drop its byte order mark.

    Args:
        content: The content of the file.
        path: The file, for messages.
        where: The field that names the file, or the path of the file.

    Returns:
        The text.

    Raises:
        FileFault: The file is not UTF-8 text; the message names the line.
    """
    fix = "save the file as UTF-8"
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise FileFault(path, where, "it is not UTF-8 text", fix, line) from error
    if "\0" in text:
        raise FileFault(
            path, where, "it has a NUL character, as UTF-16 text does", fix, text[: text.index("\0")].count("\n") + 1
        )
    return text
