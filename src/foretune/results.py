"""Reads and writes result files. They are written completely or not at all, with their origin and a checksum."""

import hashlib
import json
import math
import os
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from foretune.errors import InputError
from foretune.version import __version__

SCHEMA_VERSION = 2
CHECKSUM = "checksum"


def provenance(seed: int, wall_seconds: float, device: str | torch.device = "cpu") -> dict[str, Any]:
    """The header of every result file: schema version, package versions, seed, device, machine and wall time.

    Args:
        seed: The seed of the run.
        wall_seconds: The wall time in seconds.
        device: The device.
    """
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


TEMPORARY = ".foretune-"  # names of unfinished files and folders begin with this


def temporary_path(path: Path) -> Path:
    """The path at which a file or folder is written before it is renamed to ``path``."""
    return path.with_name(f"{TEMPORARY}{path.name}.{os.getpid()}")


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it, so that readers never see an incomplete file."""
    temporary = temporary_path(path)
    try:
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a result as strict JSON with its checksum, completely or not at all. NaN and infinity become null."""
    content = _finite({key: value for key, value in content.items() if key != CHECKSUM})
    whole = content | {CHECKSUM: checksum(content)}
    write_text(path, json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path, hint: str) -> dict[str, Any]:
    """Read a result file and check that it has not changed since foretune wrote it.

    Args:
        path: The file.
        hint: How to make the file again, for the error message.

    Raises:
        InputError: The file is missing, cannot be read, was changed, or has another schema version.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file", hint) from error
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(str(path), f"the file cannot be read as a result ({error})", hint) from error
    version = content.get("schema_version") if isinstance(content, dict) else None
    if version != SCHEMA_VERSION:
        raise InputError(str(path), f"schema_version is {version!r}, this foretune reads {SCHEMA_VERSION}", hint)
    if content.pop(CHECKSUM, None) != checksum(content):
        raise InputError(str(path), "it was changed or damaged after foretune wrote it (wrong checksum)", hint)
    return content


def checksum(content: dict[str, Any]) -> str:
    """A hash of a JSON object. It does not depend on the order of the keys or on white space."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=True, separators=(",", ":"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def file_checksum(path: Path) -> str:
    """A hash of a file's bytes, or an empty string if there is no such file."""
    if not path.is_file():
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def changed_files(folder: Path, checksums: Mapping[str, str]) -> list[str]:
    """The names of the files in a folder whose checksum is not that in ``checksums``; missing files are among them."""
    return [name for name, value in checksums.items() if file_checksum(folder / name) != value]


def differences(one: Any, other: Any, where: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Yield the differences of two JSON values as (dotted key, value in ``one``, value in ``other``)."""
    if isinstance(one, dict) and isinstance(other, dict):
        for key in dict.fromkeys([*one, *other]):
            yield from differences(one.get(key), other.get(key), f"{where}.{key}" if where else str(key))
    elif one != other:
        yield where, one, other


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
