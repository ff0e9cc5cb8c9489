"""Result files are what was written, or they are refused by name; one command writes to a directory at a time."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from foretune.errors import InputError
from foretune.results import differences, provenance, read_json, temporary_path, write_json
from foretune.run_directory import LOCK, run_directory

CONTENT = provenance(0, 1.5) | {"values": [0.1, 1 / 3, 1e-300, None], "name": "naïve – λ", "nested": {"b": 1, "a": 2}}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", CONTENT | {"infinite": float("inf")})
    assert read_json(tmp_path / "a.json", "") == CONTENT | {"infinite": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("0.1,", "0.2,"), "changed or damaged"),
        (lambda text: text[: len(text) // 2], "cannot be read as a result"),
        (lambda text: "[]", "schema_version is None"),
        (lambda text: "{}", "schema_version is None"),
        (lambda text: "[" * 100_000, "cannot be read as a result"),
        (lambda text: text.replace('"checksum"', '"check"'), "changed or damaged"),
    ],
    ids=["edited", "cut", "list", "empty", "deep", "no checksum"],
)
def test_what_is_no_longer_what_was_written_is_refused(change: Any, words: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    path.write_text(change(path.read_text()))
    with pytest.raises(InputError, match=words) as refusal:
        read_json(path, "make it again")
    assert str(path) in str(refusal.value) and "Make it again" in str(refusal.value)


def test_the_order_of_keys_and_white_space_are_no_change(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert read_json(path, "") == CONTENT


def test_differences_are_dotted() -> None:
    one, other = {"a": {"b": 1, "c": [1]}, "d": 2}, {"a": {"b": 1, "c": [2]}, "e": 3}
    assert list(differences(one, other)) == [("a.c", [1], [2]), ("d", 2, None), ("e", None, 3)]


HOLDER = """
import sys, time
from foretune.run_directory import run_directory
with run_directory(sys.argv[1]):
    print("in", flush=True)
    time.sleep(60)
"""


def test_a_second_command_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "in\n"
        with pytest.raises(InputError, match=f"another foretune command.*process {holder.pid}"):
            run_directory(tmp_path).__enter__()
        holder.kill()
        holder.wait()
    with run_directory(tmp_path) as directory:
        assert directory == tmp_path
    assert list(tmp_path.iterdir()) == [], "the lock of a command that was killed is no obstacle, and is cleared"


def test_blocks_of_one_process_may_be_nested(tmp_path: Path) -> None:
    with run_directory(tmp_path / "a"), run_directory(tmp_path / "a"), run_directory(tmp_path / "b"):
        assert (tmp_path / "a" / LOCK).exists()
    assert not (tmp_path / "a" / LOCK).exists()


def test_a_file_system_without_locks_is_no_obstacle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with run_directory(tmp_path / "a") as directory:
        assert directory.is_dir()


def test_what_killed_commands_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    leftovers = [
        temporary_path(tmp_path / "forecast.json"),
        temporary_path(tmp_path / "train" / "base" / "result.json"),
        temporary_path(tmp_path / "tangents" / "0123") / "tangents.safetensors",
    ]
    users = [tmp_path / ".config.2024", tmp_path / "notes" / ".draft.7", tmp_path / "forecast.json"]
    for path in [*leftovers, *users]:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    with run_directory(tmp_path):
        pass
    assert not any(path.exists() for path in leftovers) and all(path.exists() for path in users)
    assert not leftovers[2].parent.exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(InputError, match="cannot write there"):
        run_directory(tmp_path / "a").__enter__()
