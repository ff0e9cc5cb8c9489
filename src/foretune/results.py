"""Result files: written whole or not at all, each with where its numbers came from."""

import json
import math
import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from foretune.errors import InputError
from foretune.version import __version__

SCHEMA_VERSION = 1


def provenance(seed: int, wall_seconds: float, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The header of every result file: schema version, package versions, seed, device and wall time in seconds."""
    return {
        "schema_version": SCHEMA_VERSION,
        "versions": {"foretune": __version__} | {name: version(name) for name in ("torch", "transformers", "peft")},
        "seed": seed,
        "device": str(device),
        "machine": {
            "platform": platform.platform(),
            "cpus": os.cpu_count(),
            "threads": torch.get_num_threads(),
        },
        "wall_seconds": round(wall_seconds, 3),
    }


def writable_directory(path: str | Path) -> Path:
    """Create ``path`` if needed and check that files can be written there.

    Raises:
        InputError: It is a file, or nothing can be created in it.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / f".foretune-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(
            f"output directory {path}",
            f"cannot write there ({error.strerror})",
            "name a directory you can write to with -o",
        ) from error
    return path


def write_text(path: Path, text: str) -> None:
    """Write ``text`` under a temporary name, then rename: readers see the old file or the new one, never half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result as strict JSON (non-finite numbers become null), atomically."""
    write_text(path, json.dumps(_finite(content), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a result file.

    Raises:
        InputError: It is missing, unreadable, or of another schema version; ``hint`` says how to make it.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file", hint) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(str(path), f"not a readable result file ({error})", hint) from error
    found = content.get("schema_version") if isinstance(content, dict) else None
    if found != SCHEMA_VERSION:
        raise InputError(str(path), f"schema_version is {found!r}, this foretune reads {SCHEMA_VERSION}", hint)
    return content


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
