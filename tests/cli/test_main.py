"""Errors of the system give one line: full disks, too little memory, Ctrl-C, terminals that have only ASCII."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from helpers import tiny_rows, write_jsonl, write_tiny_run
from rich.console import Console

import foretune.cli.console as console
from foretune import __version__
from foretune.cli.main import _said, main
from foretune.errors import InputError


def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-c", "from foretune.cli import main; main()", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)


def test_version_and_help_load_no_large_libraries() -> None:
    code = (
        "import sys, foretune.cli.app; print(sorted({'torch', 'transformers', 'numpy', 'pydantic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert run("--version").stdout.strip() == f"foretune {__version__}"
    assert "forecast" in run("--help").stdout


def full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/data/adapter")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (full(), "/data/adapter: No space left on device"),
        (
            RuntimeError("[enforce fail at inline_container.cc:672] . PytorchStreamWriter failed writing file"),
            "No space",
        ),
        (OSError(errno.EROFS, os.strerror(errno.EROFS), "report.html"), "report.html: Read-only file system"),
        (OSError(errno.EACCES, os.strerror(errno.EACCES), "report.html"), "report.html: Permission denied"),
        (MemoryError(), "not enough memory"),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
            "not enough memory",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB"), "not enough memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "not enough memory"),
        (ValueError("a fault of ours"), None),
        (OSError(errno.EBADF, "Bad file descriptor"), None),
    ],
)
def test_errors_of_the_system_are_not_reported_as_faults_of_foretune(error: Exception, words: str | None) -> None:
    said = _said(error)
    assert (said is None) if words is None else (said is not None and words in said)


def test_the_cause_of_another_error_is_recognised() -> None:
    try:
        try:
            raise full()
        except OSError as cause:
            raise RuntimeError("cannot serialize") from cause
    except RuntimeError as error:
        assert "No space left" in str(_said(error))


def test_too_little_memory_is_no_fault_of_the_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def load(cause: Exception) -> None:
        raise InputError("run.yaml: model.path", f"cannot load the model ({cause})", "give other weights") from cause

    module = sys.modules["foretune.cli.main"]
    for cause, words in ((RuntimeError("can't start new thread"), "not enough memory"), (OSError("x"), "model.path")):
        monkeypatch.setattr(module, "_run", lambda cause=cause: load(cause))
        with pytest.raises(SystemExit) as stop:
            main()
        assert stop.value.code == 2 and words in capsys.readouterr().err


def test_a_full_disk_during_training_gives_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_run(tmp_path)

    def refuse(*_: object, **__: object) -> None:
        raise full()

    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", refuse)
    monkeypatch.setattr("sys.argv", ["foretune", "train", str(path), "-o", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and said.startswith("error: ") and "make room" in said


def test_an_ascii_terminal_gets_question_marks(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path)
    done = run("doctor", path, PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0 and "base" in done.stdout and "Traceback" not in done.stderr


def test_ctrl_c_gives_one_line(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path, training={"num_train_epochs": 5000})
    command = [sys.executable, "-c", "from foretune.cli import main; main()", "train"]
    command += [str(path), "-o", str(tmp_path / "out")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out").exists() and time.monotonic() < deadline:  # wait while the libraries are imported
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
    assert process.returncode == 130
    assert "interrupted: no unfinished file was left" in said and "Traceback" not in said


INTERRUPTED_IMPORT = """
import os, signal, time
try:
    os.kill(os.getpid(), signal.SIGINT)
    os.getpid()  # the handler of the signal has run by now
except BaseException:  # as C++ does with an exception that it cannot pass on
    os.abort()
def work():
    time.sleep(60)
"""
INTERRUPTED_CLEANING = """
import os, signal, time
class Closing:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGINT)
        os.getpid()
def work():
    Closing()
    time.sleep(60)
"""
STARTED = """
import sys, foretune.cli
def run():
    import library
    library.work()
sys.modules["foretune.cli.main"]._run = run
foretune.cli.main()
"""


@pytest.mark.parametrize("library", [INTERRUPTED_IMPORT, INTERRUPTED_CLEANING], ids=["import", "cleaning"])
def test_ctrl_c_gives_one_line_where_no_exception_can_be_raised(library: str, tmp_path: Path) -> None:
    (tmp_path / "library.py").write_text(library)
    command = [sys.executable, "-c", STARTED]
    path = os.pathsep.join([str(tmp_path), *sys.path])
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"PYTHONPATH": path}, timeout=50
    )
    assert done.returncode == 130
    assert done.stderr.split() == "interrupted: no unfinished file was left; run the same command to continue".split()


def test_names_of_the_user_are_not_read_as_markup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_tiny_run(tmp_path, training={"max_steps": 1})
    for split, seed in (("train", 1), ("eval", 2)):
        rows = [row | {"label": "[/INST]" if row["label"] else "[bold]"} for row in tiny_rows(16, seed=seed)]
        write_jsonl(tmp_path / f"{split}.jsonl", rows)
    for arguments in (
        ("doctor", path),
        ("forecast", path, "-o", tmp_path / "[red]"),
        ("train", path, "-o", tmp_path / "o"),
    ):
        monkeypatch.setattr("sys.argv", ["foretune", *map(str, arguments)])
        try:
            main()
        except SystemExit as stop:
            assert not stop.code
        shown = capsys.readouterr().out
        assert arguments[0] != "doctor" or ("[/INST] 8" in shown and "[bold] 8" in shown)
        assert arguments[0] != "forecast" or "[red]" in shown


def test_progress_without_a_terminal_is_a_line_from_time_to_time(monkeypatch: pytest.MonkeyPatch) -> None:
    file, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(console, "errors", Console(file=file, width=80))
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    with console.progress_bar("training base") as progress:
        for step in range(100):
            clock[0] += 1.0
            progress(step + 1, 100)
    lines = file.getvalue().splitlines()
    assert len(lines) == 5 and lines[0] == "training base: 20 of 100, about 80 s left"


@pytest.mark.parametrize(
    ("value", "name", "shown"),
    [(0.0423, "accuracy", "+4.2 points"), (0.0423, "pearson", "+0.042"), (None, "accuracy", "–")],
)
def test_only_shares_are_shown_in_points(value: Any, name: str, shown: str) -> None:
    assert console.difference(value, name, "+") == shown


@pytest.mark.parametrize("name", ["doctor", "forecast", "recommend", "train", "compare", "certify", "report", "demo"])
def test_the_help_of_every_command_has_an_example(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["foretune", name, "--help"])
    with pytest.raises(SystemExit) as stop:
        main()
    said = capsys.readouterr().out
    assert not stop.value.code and f"foretune {name} " in said[said.index("Examples:") :]
