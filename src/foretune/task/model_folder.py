"""Where a model is, and why it cannot be loaded: in the words of its folder, not of the library."""

import contextlib
import json
import re
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel

from foretune.errors import InputError
from foretune.task.config import GgufFile, ModelSpec
from foretune.task.problems import said, shown

FOLDER_FIX = (
    "give a folder with config.json, weights and tokenizer, or a hub id such as sentence-transformers/all-MiniLM-L6-v2"
)
TOKENIZER_FIX = "save the tokenizer into the same folder, with tokenizer.save_pretrained(folder)"
CONFIG_FIX = "correct config.json, or save the model again, with model.save_pretrained(folder)"
POINTER = b"version https://git-lfs"


def locate(spec: ModelSpec, where: str) -> tuple[str, dict[str, Any]]:
    """What ``from_pretrained`` takes, after the checks that need no library.

    Raises:
        InputError: There is no such folder or file, or it holds no model.
    """
    options: dict[str, Any] = {"revision": spec.revision} if spec.revision else {}
    options["trust_remote_code"] = spec.trust_remote_code  # transformers asks on the terminal where it is left out
    if isinstance(spec.path, GgufFile):
        path = Path(spec.path.gguf)
        if not path.is_file():
            raise InputError(where, f"no such file: {path}", "relative paths start at the folder of the YAML file")
        return str(path.parent), options | {"gguf_file": path.name}
    folder = Path(spec.path)
    if folder.is_absolute():
        if not folder.exists():
            raise InputError(where, f"no such folder: {folder}", FOLDER_FIX)
        if not folder.is_dir():
            fix = "give the folder that holds it, or {gguf: file} for a GGUF file"
            raise InputError(where, f"{folder} is a file, not a model folder", fix)
        if (folder / "adapter_config.json").exists():  # it would be put onto the model unseen
            fix = f"give the model that it was made for{_base_model(folder)}, or one saved after merge_and_unload()"
            raise InputError(where, f"{folder} holds an adapter (adapter_config.json)", fix)
        if not (folder / "config.json").is_file():
            raise InputError(where, f"{folder} has no config.json", FOLDER_FIX)
        if fault := _json_fault(folder / "config.json"):
            raise InputError(where, f"{folder / 'config.json'} {fault}", CONFIG_FIX)
    return spec.path, options


@contextlib.contextmanager
def explained(spec: ModelSpec, where: str, thing: str) -> Generator[None]:
    """Inside the block the many errors of ``from_pretrained`` become one kind that names the model.

    Args:
        spec: Which model.
        where: The field that messages name.
        thing: What is loaded of it: ``config``, ``tokenizer`` or ``model``.

    Raises:
        InputError: Loading fails.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        found, fix = _diagnosis(error, spec, thing)
        raise InputError(where, found, fix) from error


def _diagnosis(error: Exception, spec: ModelSpec, thing: str) -> tuple[str, str]:
    """What was found, and what to do about it."""
    reason = _reason(error)
    found = f"cannot load the {thing} of {spec.path} ({reason[:300].rstrip('.')})"
    lowered = said(error).lower()
    if isinstance(error, MemoryError) or "memory" in lowered:
        return found, "give a smaller model, or load it with dtype: bfloat16"
    if isinstance(spec.path, GgufFile):
        if "gguf" in lowered and "install" in lowered:
            return found, "install it with: pip install 'foretune[gguf]'"
        return found, "give a GGUF file of an architecture that transformers can read, or the original model's folder"
    local = Path(spec.path).is_absolute()
    if local and (faulty := _faulty_file(Path(spec.path))):
        return faulty
    if "trust_remote_code" in lowered:
        return found, "set trust_remote_code: true in the model section if you trust the code in that repository"
    if any(word in lowered for word in ("attn_implementation", "attention implementation", "flashattention")):
        return found, "write attn_implementation: sdpa or eager, or leave it out"
    if "pip install" in lowered:
        return found, "install what it asks for, or give a model without it"
    if any(word in lowered for word in ("unrecognized", "does not recognize this architecture")):
        fix = "give a model whose config.json names an architecture that transformers knows by its model_type"
        if thing == "model":
            fix = "give an architecture that AutoModelForSequenceClassification supports"
            fix += ", or set pooling: mean" if spec.pooling == "model" else ""
        return found, fix
    if not local:
        return found, "check the spelling and the connection, or give the path of a folder on this machine"
    if thing == "tokenizer":
        return found, TOKENIZER_FIX
    if thing == "config" or (fault := _config_fault(spec)):
        found = found if thing == "config" else f"config.json in {spec.path} describes no model ({fault})"
        return found, CONFIG_FIX
    if "weights only load failed" in lowered:
        found = f"cannot load the model of {spec.path} (pytorch_model.bin is no file of weights)"
    return found, "give a folder with weights that match its config.json (model.safetensors or pytorch_model.bin)"


def _faulty_file(folder: Path) -> tuple[str, str] | None:
    """The first file that cannot be what its name says, and what to do about it."""
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".bin", ".model"} and path.is_file():
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    return f"{path} only points to its content (Git LFS)", "fetch it with git lfs pull"
        if path.suffix == ".json" and (fault := _json_fault(path)):
            return f"{path} {fault}", "save it again, with save_pretrained(folder) of the model or the tokenizer"
    return None


def _json_fault(path: Path) -> str | None:
    """Why a file does not hold a mapping of keys to values; None if it does."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read ({said(error)})"
    return None if isinstance(content, dict) else f"holds {shown(content)}, not a mapping of keys to values"


def _config_fault(spec: ModelSpec) -> str | None:
    """Why the config alone, without weights, makes no model; None if it makes one."""
    try:
        config = AutoConfig.from_pretrained(str(spec.path), trust_remote_code=spec.trust_remote_code)
        with torch.device("meta"):
            AutoModel.from_config(config, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        return _reason(error)[:300]
    return None


def _reason(error: Exception) -> str:
    """What a library's error says, without the lists and the guesses behind it."""
    reason = f"there is no {error}" if isinstance(error, KeyError) else said(error)
    return re.split(
        r" (?:Model type should be one of|This could be because|You can inspect|The only possible)", reason
    )[0]


def _base_model(folder: Path) -> str:
    """The model that an adapter was made for, as a clause of a sentence; nothing if it does not say."""
    with contextlib.suppress(OSError, ValueError):
        if name := json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path"):
            return f" ({name})"
    return ""
