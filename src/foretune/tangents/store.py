"""Tangents on disk: one safetensors file written row by row, then renamed, beside a manifest."""

import json
import os
import shutil
from collections.abc import Generator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from foretune.errors import InputError
from foretune.results import SCHEMA_VERSION, file_checksum, read_json, temporary_path, write_json

FORMAT = 9
ROWS, SUMMARY, MANIFEST = "tangents.safetensors", "summary.safetensors", "manifest.json"
_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
}

Spec = Mapping[str, tuple[tuple[int, ...], torch.dtype]]


class RowFile:
    """A safetensors file whose tensors are written row by row, by a thread beside the computation.

    Rows go through ``pwrite``: a full disk is then an error, where writing into a memory map would kill the process.

    Raises:
        InputError: The disk has no room for them.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        header: dict[str, dict[str, Any]] = {}
        end = 0
        for name, (shape, dtype) in spec.items():
            size = int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            gap = -size % 64  # tensors are aligned; the gap is its own tensor, as the format allows no holes
            if gap:
                offsets = [end + size, end + size + gap]
                header[f"{name}.gap"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
            end += size + gap
        free = shutil.disk_usage(path.parent).free
        if end > free:
            raise InputError(
                str(path.parent.parent),
                f"the tangents take {end / 1e9:.2g} GB and {free / 1e9:.2g} GB are free",
                "make room, name a directory on another disk with -o, or let some examples stand for all with --sample",
            )
        text = json.dumps(header).encode()
        text += b" " * (-(len(text) + 8) % 64)
        self.file = path.open("wb")
        self.file.write(len(text).to_bytes(8, "little") + text)
        self.file.flush()
        self.file.truncate(8 + len(text) + end)
        self.starts = {name: 8 + len(text) + header[name]["data_offsets"][0] for name in spec}

        self.thread = ThreadPoolExecutor(1)
        self.pending: Future[None] = self.thread.submit(lambda: None)

    def write(self, batch: Mapping[str, tuple[int, Float[Tensor, "rows ..."]]]) -> None:
        """Begin to write contiguous rows of some tensors, each from a row number on.

        Returns when the rows of the call before are written: whoever fills two sets of memory in turn overwrites none.
        """
        self.pending.result()
        self.pending = self.thread.submit(self._write, dict(batch))

    def _write(self, batch: dict[str, tuple[int, Tensor]]) -> None:
        for name, (first, rows) in batch.items():
            left = memoryview(rows.reshape(-1).view(torch.uint8).numpy().data)
            at = self.starts[name] + first * (len(left) // max(len(rows), 1))
            while left:
                done = os.pwrite(self.file.fileno(), left, at)
                left, at = left[done:], at + done

    def close(self) -> None:
        """Wait for the last rows; no more come."""
        try:
            self.pending.result()
        finally:
            self.thread.shutdown()
            self.file.close()


def fault(folder: Path) -> str | None:
    """Why the tangents in a folder cannot be read, "" if there are none; None if they can.

    Every byte is looked at: numbers that a disk or somebody changed would go into forecasts unseen.
    """
    if not folder.exists():
        return ""
    try:
        files = read_json(folder / MANIFEST, "")["files"]
    except InputError as error:
        return error.found
    damaged = [name for name, value in files.items() if file_checksum(folder / name) != value]
    return f"{', '.join(damaged)} changed after it was written" if damaged else None


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Rows (mapped, read when used), summary and manifest of a folder without fault."""
    with safe_open(folder / ROWS, framework="pt") as file:
        rows = {name: file.get_tensor(name) for name in file.keys() if not name.endswith(".gap")}
    return rows, load_file(folder / SUMMARY), read_json(folder / MANIFEST, "")


@contextmanager
def writing(folder: Path) -> Generator[Path]:
    """A temporary folder that becomes ``folder`` when the block ends well, and disappears when it does not."""
    temporary = temporary_path(folder)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest, with checksums of the other files, which marks the folder as finished."""
    files = {name: file_checksum(folder / name) for name in (ROWS, SUMMARY)}
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files} | manifest)
