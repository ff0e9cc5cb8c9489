"""Find the checkpoint from which a run can continue: a whole one that belongs to the same run.

``Trainer`` writes a checkpoint file by file. After the last file, foretune writes a *seal* with a checksum of every
file, under a temporary name that is then renamed. A checkpoint without a seal, or one that does not match its seal, is
not used. A file next to the checkpoints describes the run that they belong to.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.results import SCHEMA_VERSION, changed_files, differences, file_checksum, read_json, write_json

SEAL = "foretune-seal.json"
RUN = "run.json"
STATE = "trainer_state.json"
LEAST_KEPT = 2  # how many checkpoints are kept at least: one is whole while the next one is being written


def seal(checkpoint: Path) -> None:
    """Mark a checkpoint as whole: write its seal."""
    files = {path.name: file_checksum(path) for path in _files(checkpoint)}
    write_json(checkpoint / SEAL, {"schema_version": SCHEMA_VERSION, "files": files})


def fault(checkpoint: Path) -> str | None:
    """Return the reason why a checkpoint cannot be used; None if it can."""
    try:
        sealed = read_json(checkpoint / SEAL, "")["files"]
    except (InputError, KeyError):
        return "it was not written to its end"
    damaged = changed_files(checkpoint, sealed)
    return f"{', '.join(damaged)} changed after it was saved" if damaged else None


def prepare(directory: Path, run: dict[str, Any], notify: Callable[[str], None]) -> Path | None:
    """Find the checkpoint from which a run continues, and remove checkpoints that cannot be used.

    Args:
        directory: The folder of the run's checkpoints; it is created if it does not exist.
        run: The run: its settings, and a hash of data and model.
        notify: Called with a sentence about every removal.

    Returns:
        The newest checkpoint that can be used; None if training starts from the beginning.
    """
    if directory.exists():
        other = _other_run(directory, run)
        if other:
            notify(f"{directory}: its checkpoints belong to another run ({other}); training starts afresh")
            shutil.rmtree(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_json(directory / RUN, {"schema_version": SCHEMA_VERSION, "run": run})
    for checkpoint in sorted(directory.glob("checkpoint-*"), key=_step, reverse=True):
        why = fault(checkpoint) or _best_is_missing(checkpoint)
        if why is None:
            return checkpoint
        notify(f"{checkpoint}: {why}; it was removed")
        shutil.rmtree(checkpoint)
    return None


def _other_run(directory: Path, run: dict[str, Any]) -> str:
    """Describe how the run of the checkpoints differs from this run; empty if it does not."""
    try:
        before = read_json(directory / RUN, "")["run"]
    except (InputError, KeyError):
        return f"there is no readable {RUN}" if any(directory.glob("checkpoint-*")) else ""
    return changes(before, run)


def changes(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Describe how an earlier run differs from the one that is asked for.

    Args:
        before: Description of the earlier run.
        now: Description of the run that is asked for.

    Returns:
        Up to three differences in words; empty if there are none.
    """
    values = differences(before, json.loads(json.dumps(now)))  # through JSON, which turns tuples into lists
    words = [
        "other data, labels, pooling or model" if name == "task" else f"{name} was {old!r}, now {new!r}"
        for name, old, new in values
    ]
    return "; ".join(words[:3]) + (f"; and {len(words) - 3} more" if len(words) > 3 else "")


def _best_is_missing(checkpoint: Path) -> str | None:
    """The reason why the best checkpoint so far, which a run may load at its end, cannot be used; None if it can."""
    best = json.loads((checkpoint / STATE).read_text(encoding="utf-8")).get("best_model_checkpoint")
    why = best and fault(checkpoint.parent / Path(best).name)
    return f"the best checkpoint so far, {Path(best).name}, cannot be used: {why}" if why else None


def _files(checkpoint: Path) -> list[Path]:
    return [path for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name != SEAL]


def _step(checkpoint: Path) -> int:
    number = checkpoint.name.removeprefix("checkpoint-")
    return int(number) if number.isdigit() else -1
