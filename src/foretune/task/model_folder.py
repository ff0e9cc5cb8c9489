"""Locates a model, and explains why it cannot be loaded by naming the faulty file of its folder."""

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
from foretune.task.problems import error_text, shown

FOLDER_FIX = (
    "give a folder with config.json, weights and tokenizer, or a hub id such as sentence-transformers/all-MiniLM-L6-v2"
)
TOKENIZER_FIX = "save the tokenizer into the same folder, with tokenizer.save_pretrained(folder)"
CONFIG_FIX = "correct config.json, or save the model again, with model.save_pretrained(folder)"
POINTER = b"version https://git-lfs"


def locate(spec: ModelSpec, where: str) -> tuple[str, dict[str, Any]]:
    """Check the path of a model, and give the arguments of ``from_pretrained``.

    Args:
        spec: The model section of the run file.
        where: The field that messages name.

    Returns:
        The path or hub id, and keyword arguments.

    Raises:
        InputError: There is no such folder or file, or it does not have a model.
    """
    options: dict[str, Any] = {"revision": spec.revision} if spec.revision else {}
    options["trust_remote_code"] = spec.trust_remote_code  # without this key transformers asks on the terminal
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
            fix = "give the folder of the model, or {gguf: file} for a GGUF file"
            raise InputError(where, f"{folder} is a file, not a model folder", fix)
        if (folder / "adapter_config.json").exists():  # transformers would add the adapter without a warning
            fix = f"give the base model of the adapter{_base_model(folder)}, or a model saved after merge_and_unload()"
            raise InputError(where, f"{folder} contains an adapter (adapter_config.json)", fix)
        if not (folder / "config.json").is_file():
            raise InputError(where, f"{folder} has no config.json", FOLDER_FIX)
        if fault := _json_fault(folder / "config.json"):
            raise InputError(where, f"{folder / 'config.json'} {fault}", CONFIG_FIX)
    return spec.path, options


@contextlib.contextmanager
def explain_errors(spec: ModelSpec, where: str, thing: str) -> Generator[None]:
    """Turn all errors of ``from_pretrained`` inside a ``with`` block into errors that name the model and the fault.

    Args:
        spec: The model section of the run file.
        where: The field that messages name.
        thing: What is loaded: ``config``, ``tokenizer`` or ``model``.

    Raises:
        InputError: Loading fails.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        problem, fix = _diagnosis(error, spec, thing)
        raise InputError(where, problem, fix) from error


def _diagnosis(error: Exception, spec: ModelSpec, thing: str) -> tuple[str, str]:
    """The problem behind an error, and what to do about it."""
    reason = _reason(error)
    problem = f"cannot load the {thing} of {spec.path} ({reason[:300].rstrip('.')})"
    message = error_text(error).lower()
    if isinstance(error, MemoryError) or "memory" in message:
        return problem, "give a smaller model, or load it with dtype: bfloat16"
    if isinstance(spec.path, GgufFile):
        if "gguf" in message and "install" in message:
            return problem, "install it with: pip install 'foretune[gguf]'"
        return problem, "give a GGUF file of an architecture that transformers can read, or the original model's folder"
    local = Path(spec.path).is_absolute()
    if local and (faulty := _faulty_file(Path(spec.path))):
        return faulty
    if "trust_remote_code" in message:
        return problem, "set trust_remote_code: true in the model section if you trust the code in that repository"
    if any(word in message for word in ("attn_implementation", "attention implementation", "flashattention")):
        return problem, "write attn_implementation: sdpa or eager, or leave it out"
    if "pip install" in message:
        return problem, "install the packages that it names, or give a model that does not need them"
    if any(word in message for word in ("unrecognized", "does not recognize this architecture")):
        fix = "give a model whose config.json has a model_type that transformers supports"
        if thing == "model":
            fix = "give an architecture that AutoModelForSequenceClassification supports"
            fix += ", or set pooling: mean" if spec.pooling == "model" else ""
        return problem, fix
    if not local:
        return problem, "check the spelling and the network connection, or give the path of a folder on this machine"
    if thing == "tokenizer":
        return problem, TOKENIZER_FIX
    if thing == "config" or (fault := _config_fault(spec)):
        problem = problem if thing == "config" else f"config.json in {spec.path} does not describe a model ({fault})"
        return problem, CONFIG_FIX
    if "weights only load failed" in message:
        problem = f"cannot load the model of {spec.path} (pytorch_model.bin is not a file of weights)"
    return problem, "give a folder with weights that match its config.json (model.safetensors or pytorch_model.bin)"


def _faulty_file(folder: Path) -> tuple[str, str] | None:
    """The problem of the first file whose content does not fit its name, and what to do about it; None without one."""
    for path in sorted(folder.iterdir()):
        if path.suffix in {".json", ".safetensors", ".bin", ".model"} and path.is_file():
            with path.open("rb") as file:
                if file.read(len(POINTER)) == POINTER:
                    return f"{path} is a Git LFS pointer instead of the file", "fetch the file with git lfs pull"
        if path.suffix == ".json" and (fault := _json_fault(path)):
            return f"{path} {fault}", "save it again, with save_pretrained(folder) of the model or the tokenizer"
    return None


def _json_fault(path: Path) -> str | None:
    """Why a JSON file is not a mapping of keys to values; None if it is one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return f"cannot be read ({error_text(error)})"
    return None if isinstance(content, dict) else f"contains {shown(content)} instead of a mapping of keys to values"


def _config_fault(spec: ModelSpec) -> str | None:
    """Why no model can be built from the config alone, without weights; None if one can be built."""
    try:
        config = AutoConfig.from_pretrained(str(spec.path), trust_remote_code=spec.trust_remote_code)
        with torch.device("meta"):
            AutoModel.from_config(config, trust_remote_code=spec.trust_remote_code)
    except Exception as error:
        return _reason(error)[:300]
    return None


def _reason(error: Exception) -> str:
    """The message of a library's error, without the lists and the guesses at its end."""
    reason = f"there is no {error}" if isinstance(error, KeyError) else error_text(error)
    return re.split(
        r" (?:Model type should be one of|This could be because|You can inspect|The only possible)", reason
    )[0]


def _base_model(folder: Path) -> str:
    """The base model that an adapter's config names, in brackets; ``""`` if it names none."""
    with contextlib.suppress(OSError, ValueError):
        if name := json.loads((folder / "adapter_config.json").read_text("utf-8")).get("base_model_name_or_path"):
            return f" ({name})"
    return ""
