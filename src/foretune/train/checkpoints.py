"""Checkpoints that a run can go on from: whole ones, of this very run.

``Trainer`` writes a checkpoint file by file. When the last file is there, a seal with a checksum of every file is
written beside them, under a temporary name that is then renamed. A checkpoint without a seal, or one that does not
match its seal, is not used. Beside the checkpoints lies what run they belong to.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.results import SCHEMA_VERSION, differences, file_checksum, read_json, write_json

SEAL = "foretune-seal.json"
RUN = "run.json"
STATE = "trainer_state.json"
LEAST_KEPT = 2  # checkpoints: the one before the last is whole while the last is being written


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole."""
    files = {path.name: file_checksum(path) for path in _files(checkpoint)}
    write_json(checkpoint / SEAL, {"schema_version": SCHEMA_VERSION, "files": files})


def fault(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used; None if it can."""
    try:
        sealed = read_json(checkpoint / SEAL, "")["files"]
    except (InputError, KeyError):
        return "it was not written to its end"
    names = {path.name for path in _files(checkpoint)}
    damaged = [name for name, value in sealed.items() if name not in names or file_checksum(checkpoint / name) != value]
    return f"{', '.join(damaged)} changed after it was saved" if damaged else None


def prepare(directory: Path, run: dict[str, Any], notify: Callable[[str], None]) -> Path | None:
    """The checkpoint that a run goes on from, None to start afresh; what cannot be used is removed, and said.

    Args:
        directory: Where the run's checkpoints are; made if it is not there.
        run: What the run is: settings, and a hash of data and model.
        notify: Called with a sentence about what is not used.
    """
    if directory.exists():
        other = _other_run(directory, run)
        if other:
            notify(f"{directory}: its checkpoints are of another run ({other}); training starts afresh")
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RUN, {"schema_version": SCHEMA_VERSION, "run": run})
    for checkpoint in sorted(directory.glob("checkpoint-*"), key=_step, reverse=True):
        why = fault(checkpoint) or _best_is_missing(checkpoint)
        if why is None:
            return checkpoint
        notify(f"{checkpoint}: {why}; it is not used")
        shutil.rmtree(checkpoint)
    return None


def _other_run(directory: Path, run: dict[str, Any]) -> str:
    """How the run that checkpoints belong to differs from this one, in words; empty if it does not."""
    try:
        before = read_json(directory / RUN, "")["run"]
    except (InputError, KeyError):
        return "nothing says of which" if any(directory.glob("checkpoint-*")) else ""
    return changes(before, run)


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """In words, how a run that is described by ``before`` differs from the one asked for; empty if it does not."""
    # as JSON has them: a tuple is a list there
    pairs = list(differences(before, json.loads(json.dumps(now))))
    words = [
        "other data, labels, pooling or model" if name == "task" else f"{name} was {old!r}, now {new!r}"
        for name, old, new in pairs
    ]
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")


def _best_is_missing(checkpoint: Path) -> str | None:
    """Why the best checkpoint so far, which a run may load at its end, cannot be used; None if it can."""
    best = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    why = best and fault(checkpoint.parent / Path(best).name)
    return f"the best checkpoint so far, {Path(best).name}, cannot be used: {why}" if why else None


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name != SEAL]


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1
