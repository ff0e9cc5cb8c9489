"""Files of tangents: a folder with the rows, a summary of everything else, and a manifest with checksums.

The folder is written under a temporary name and renamed when it is complete.
"""

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
from foretune.results import SCHEMA_VERSION, changed_files, file_checksum, read_json, temporary_path, write_json

FORMAT = 9  # the names of folders depend on it; raise it when the meaning of the files changes
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
    """A safetensors file whose tensors are written a few rows at a time, by a thread of its own.

    Rows are written with ``pwrite``. On a full disk this raises an error; writing to a memory map would kill the
    process.

    Args:
        path: The file.
        spec: Shape and type of every tensor by name.

    Raises:
        InputError: The tensors need more space than the disk has.
    """

    def __init__(self, path: Path, spec: Spec) -> None:
        header: dict[str, dict[str, Any]] = {}
        end = 0
        for name, (shape, dtype) in spec.items():
            size = int(np.prod(shape)) * dtype.itemsize
            header[name] = {"dtype": _NAMES[dtype], "shape": list(shape), "data_offsets": [end, end + size]}
            gap = -size % 64  # tensors are aligned; the format allows no holes, so the gap is a tensor too
            if gap:
                offsets = [end + size, end + size + gap]
                header[f"{name}.gap"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
            end += size + gap
        free = shutil.disk_usage(path.parent).free
        if end > free:
            raise InputError(
                str(path.parent.parent),
                f"the tangents take {end / 1e9:.2g} GB, and only {free / 1e9:.2g} GB are free",
                "free some space, write to another disk with -o, or collect fewer examples with --sample",
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
        """Start to write contiguous rows, once the rows of the previous call are written.

        The caller may then reuse the memory of the previous call, but not yet the memory of this one.

        Args:
            batch: The number of the first row, and the rows, for some of the tensors by name.
        """
        self.pending.result()
        self.pending = self.thread.submit(self._write, dict(batch))

    def _write(self, batch: dict[str, tuple[int, Tensor]]) -> None:
        for name, (first, rows) in batch.items():
            remaining = memoryview(rows.reshape(-1).view(torch.uint8).numpy().data)
            offset = self.starts[name] + first * (len(remaining) // max(len(rows), 1))
            while remaining:
                written = os.pwrite(self.file.fileno(), remaining, offset)
                remaining, offset = remaining[written:], offset + written

    def close(self) -> None:
        """Wait until all rows are written, and close the file."""
        try:
            self.pending.result()
        finally:
            self.thread.shutdown()
            self.file.close()


def fault(folder: Path) -> str | None:
    """Tell why the tangents in a folder cannot be used.

    All files are compared with their checksums, because a changed number would make forecasts wrong unnoticed.

    Returns:
        The reason. It is empty if the folder does not exist, and None if the tangents can be used.
    """
    if not folder.exists():
        return ""
    try:
        files = read_json(folder / MANIFEST, "")["files"]
    except InputError as error:
        return error.found
    damaged = changed_files(folder, files)
    return f"{', '.join(damaged)} changed after being written" if damaged else None


def load(folder: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Load rows, summary and manifest from a folder without a fault. Rows are memory-mapped and read when used."""
    with safe_open(folder / ROWS, framework="pt") as file:
        rows = {name: file.get_tensor(name) for name in file.keys() if not name.endswith(".gap")}
    return rows, load_file(folder / SUMMARY), read_json(folder / MANIFEST, "")


@contextmanager
def writing(folder: Path) -> Generator[Path]:
    """Provide a temporary folder. It becomes ``folder`` if the block succeeds, and is removed if the block fails."""
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
    """Write the manifest with checksums of the other files. It marks the folder as complete."""
    files = {name: file_checksum(folder / name) for name in (ROWS, SUMMARY)}
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, "files": files} | manifest)
