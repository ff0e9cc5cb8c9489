"""Loading a model and its tokenizer, with every way it can fail explained."""

import contextlib
from collections.abc import Generator, Sequence
from dataclasses import dataclass
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
from foretune.task.model_folder import TOKENIZER_FIX, explained, locate
from foretune.task.pooling import MeanPooledClassifier, pooling_option
from foretune.task.weights import check_weights, drawn, unused_layers


def load_tokenizer(spec: ModelSpec, where: str = "run.yaml: model.path") -> PreTrainedTokenizerBase:
    """The model's tokenizer, with a pad token: the end-of-sequence token where the model has none of its own.

    Raises:
        InputError: It cannot be loaded, has no vocabulary, or has neither of these tokens.
    """
    path, options = locate(spec, where)
    with quiet(), explained(spec, where, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers builds an empty one where files are missing
        found = f"the tokenizer of {spec.path} has no vocabulary"
        raise InputError(where, found, TOKENIZER_FIX)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            fix = "set pad_token in the folder's tokenizer_config.json"
            raise InputError(where, "the tokenizer has neither a pad nor an end-of-sequence token", fix)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A classifier and its weights file.

    Attributes:
        model: The classifier.
        drawn: Its parameters and buffers that are not from the file.
        unused: Tensors of the file that are of further layers, which the config does not have.
    """

    model: PreTrainedModel
    drawn: tuple[str, ...]
    unused: tuple[str, ...]


def read_model_config(spec: ModelSpec, where: str = "run.yaml: model.path") -> PreTrainedConfig:
    """The config of the model as it was saved; one that cannot be read is an ``InputError``."""
    path, options = locate(spec, where)
    with quiet(), explained(spec, where, "config"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(path, **options)
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
    path, options = locate(spec, where)
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
    with quiet(), explained(spec, where, "model"):
        set_seed(seed)
        if spec.pooling == "mean":
            source, loading = AutoModel.from_pretrained(path, **options, **pooling)
            source.config.update(head)
            model: PreTrainedModel = MeanPooledClassifier(source.config, source)
        else:
            source, loading = AutoModelForSequenceClassification.from_pretrained(path, **options, **head)
            model = source
    check_weights(model, source, loading, where)
    if pad_token_id is not None:
        model.config.pad_token_id = pad_token_id
    new = drawn(model, source, loading["missing_keys"])
    return LoadedModel(model.eval(), new, unused_layers(source, loading["unexpected_keys"]))


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
