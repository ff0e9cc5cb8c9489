"""Loading a model and its tokenizer, with every way it can fail explained."""

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)
from transformers.utils import logging

from foretune.errors import InputError
from foretune.task.config import GgufFile, ModelSpec
from foretune.task.pooling import MeanPooledClassifier, pooling_option
from foretune.task.weights import check_weights, drawn

FOLDER_FIX = (
    "give a folder with config.json, weights and tokenizer, or a hub id such as sentence-transformers/all-MiniLM-L6-v2"
)


def load_tokenizer(spec: ModelSpec, where: str = "run.yaml: model.path") -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token: the end-of-sequence token where the model has none of its own.

    Raises:
        InputError: It cannot be loaded, has no vocabulary, or has neither of these tokens.
    """
    location, options = _location(spec, where)
    with quiet(), _explained(spec, where, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(location, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers builds an empty one where files are missing
        found = f"the tokenizer of {spec.path} has no vocabulary"
        raise InputError(
            where, found, "save the tokenizer into the same folder, with tokenizer.save_pretrained(folder)"
        )
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            fix = "set pad_token in the folder's tokenizer_config.json"
            raise InputError(where, "the tokenizer has neither a pad nor an end-of-sequence token", fix)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A classifier, and what of it is not from the weights file: the names of its parameters that were drawn."""

    model: PreTrainedModel
    drawn: tuple[str, ...]


def read_model_config(spec: ModelSpec, where: str = "run.yaml: model.path") -> PreTrainedConfig:
    """The config of the model as it was saved; one that cannot be read is an ``InputError``."""
    location, options = _location(spec, where)
    with quiet(), _explained(spec, where, "config"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(location, **options)
    return config


def load_model(
    spec: ModelSpec,
    num_labels: int,
    labels: Sequence[str] | None = None,
    pad_token_id: int | None = None,
    seed: int = 42,
    where: str = "run.yaml: model.path",
) -> LoadedModel:
    """The pretrained model with a classifier on top, in eval mode.

    The new head is a function of the seed, exactly as in a script that calls ``set_seed(seed)`` and then
    ``from_pretrained``; the global random state is left as it would be there, so that an adapter added next
    matches too. A model that cannot be loaded is an ``InputError`` that says what is missing.

    Args:
        spec: Which model.
        num_labels: Outputs: the number of classes, or 1 for regression.
        labels: Class names for the config.
        pad_token_id: Written to the config; needed by decoders to find the last token.
        seed: Of the new head.
        where: The field that messages name.
    """
    location, options = _location(spec, where)
    head: dict[str, Any] = {"num_labels": num_labels}
    if labels is not None:
        head |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    head["problem_type"] = "regression" if spec.task == "regression" else "single_label_classification"
    # sizes that do not fit are refused by check_weights, which names them
    options |= {"dtype": getattr(torch, spec.dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if isinstance(spec.path, GgufFile) and hasattr(transformers, "GgufConfig"):  # else they are always dense
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    pooling = pooling_option(read_model_config(spec, where)) if spec.pooling == "mean" else {}
    with quiet(), _explained(spec, where, "model"):
        set_seed(seed)
        if spec.pooling == "mean":
            source, loading = AutoModel.from_pretrained(location, **options, **pooling)
            source.config.update(head)
            model: PreTrainedModel = MeanPooledClassifier(source.config, source)
        else:
            source, loading = AutoModelForSequenceClassification.from_pretrained(location, **options, **head)
            model = source
    check_weights(model, source, loading, where)
    if pad_token_id is not None:
        model.config.pad_token_id = pad_token_id
    return LoadedModel(model.eval(), drawn(model, source, loading["missing_keys"]))


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep transformers from reporting the new head as a fault, and from drawing progress bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _location(spec: ModelSpec, where: str) -> tuple[str, dict[str, Any]]:
    # What from_pretrained takes, after the checks that need no library.
    options: dict[str, Any] = {"revision": spec.revision} if spec.revision else {}
    if spec.trust_remote_code:
        options["trust_remote_code"] = True
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
        if not (folder / "config.json").is_file():
            raise InputError(where, f"{folder} has no config.json", FOLDER_FIX)
        try:
            json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(where, f"{folder / 'config.json'} cannot be read ({error})", FOLDER_FIX) from error
    return spec.path, options


@contextlib.contextmanager
def _explained(spec: ModelSpec, where: str, thing: str) -> Generator[None]:
    # Turns the many errors of from_pretrained into one kind that names the model.
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        found = f"cannot load the {thing} of {spec.path} ({reason[:300].rstrip('.')})"
        raise InputError(where, found, _advice(reason, spec, thing)) from error


def _advice(reason: str, spec: ModelSpec, thing: str) -> str:
    lowered = reason.lower()
    if isinstance(spec.path, GgufFile):
        if "gguf" in lowered and "install" in lowered:
            return "install it with: pip install 'foretune[gguf]'"
        return "give a GGUF file of an architecture that transformers can read, or the original model's folder"
    if "trust_remote_code" in lowered:
        return "set trust_remote_code: true in the model section if you trust the code in that repository"
    if "attn_implementation" in lowered or "attention" in lowered:
        return "write attn_implementation: sdpa or eager, or leave it out"
    if "unrecognized" in lowered or "does not recognize this architecture" in lowered or "model type" in lowered:
        return "give an architecture that AutoModelForSequenceClassification supports, or set pooling: mean"
    if Path(spec.path).is_absolute():
        if thing == "tokenizer":
            return "save the tokenizer into the same folder, with tokenizer.save_pretrained(folder)"
        return "give a folder with weights that match its config.json (model.safetensors or pytorch_model.bin)"
    return "check the spelling and the connection, or give the path of a folder on this machine"
