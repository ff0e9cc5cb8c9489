"""Loads a model and its tokenizer, and explains why loading fails."""

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
from foretune.task.model_folder import TOKENIZER_FIX, explain_errors, locate
from foretune.task.pooling import MeanPooledClassifier, pooling_option
from foretune.task.weights import check_weights, drawn_tensors, unused_layers


def load_tokenizer(spec: ModelSpec, where: str = "run.yaml: model.path") -> PreTrainedTokenizerBase:
    """Load the model's tokenizer.

    A tokenizer without a padding token gets its end-of-sequence token as the padding token.

    Args:
        spec: The model section of the run file.
        where: The field that messages name.

    Returns:
        The tokenizer.

    Raises:
        InputError: The tokenizer cannot be loaded, has no vocabulary, or has neither of these tokens.
    """
    path, options = locate(spec, where)
    with quiet(), explain_errors(spec, where, "tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(path, **options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):  # transformers builds an empty tokenizer if files are missing
        problem = f"the tokenizer of {spec.path} has no vocabulary"
        raise InputError(where, problem, TOKENIZER_FIX)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            fix = "set pad_token in the folder's tokenizer_config.json"
            raise InputError(where, "the tokenizer has neither a padding nor an end-of-sequence token", fix)
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


@dataclass(frozen=True)
class LoadedModel:
    """A classifier, compared with its weights file.

    Attributes:
        model: The classifier.
        drawn: Names of the parameters and buffers that were drawn at random, because the file does not have them.
        unused: Names of tensors of the file that belong to layers which the config does not have.
    """

    model: PreTrainedModel
    drawn: tuple[str, ...]
    unused: tuple[str, ...]


def read_model_config(spec: ModelSpec, where: str = "run.yaml: model.path") -> PreTrainedConfig:
    """Load the saved config of a model; a config that cannot be read raises an ``InputError``."""
    path, options = locate(spec, where)
    with quiet(), explain_errors(spec, where, "config"):
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
    """Load a pretrained model with a classification or regression head, in eval mode.

    A new head and the global random state afterwards are those of a script that calls ``set_seed(seed)`` and then
    ``from_pretrained``. So an adapter that is added next has the same start as in such a script. A model that cannot be
    loaded raises an ``InputError``, which says what is missing.

    Args:
        spec: The model section of the run file.
        num_labels: Number of outputs: the number of classes, or 1 for regression.
        labels: The names of the classes for the config.
        pad_token_id: The padding token for the config; decoders need it to find the last token of a text.
        seed: The seed of a new head.
        where: The field that messages name.

    Returns:
        The model, and the differences between it and its weights file.
    """
    path, options = locate(spec, where)
    head: dict[str, Any] = {"num_labels": num_labels}
    if labels is not None:
        head |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    head["problem_type"] = "regression" if spec.task == "regression" else "single_label_classification"
    # check_weights reports tensors of other sizes, and names them
    options |= {"dtype": getattr(torch, spec.dtype), "output_loading_info": True, "ignore_mismatched_sizes": True}
    if spec.attn_implementation is not None:
        options["attn_implementation"] = spec.attn_implementation
    if isinstance(spec.path, GgufFile) and hasattr(transformers, "GgufConfig"):  # older versions always dequantise
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    pooling = pooling_option(read_model_config(spec, where)) if spec.pooling == "mean" else {}
    with quiet(), explain_errors(spec, where, "model"):
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
    new = drawn_tensors(model, source, loading["missing_keys"])
    return LoadedModel(model.eval(), new, unused_layers(source, loading["unexpected_keys"]))


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """Keep transformers from warning about the new head and from drawing progress bars."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
