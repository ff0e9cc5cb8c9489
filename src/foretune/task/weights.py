"""Checks which parts of a model are missing from its weights file.

A classifier has a pretrained body and a head on top, which is usually new. Some models have a pooler in between: a
layer that turns the features of the tokens into the features of the text.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from foretune.errors import InputError

MOST_LISTED = 4  # tensors that a message names


def check_weights(model: PreTrainedModel, source: PreTrainedModel, loading: Mapping[str, Any], where: str) -> None:
    """Check that the weights file has the whole model except its head and pooler, in the sizes of its config.

    transformers initialises missing tensors at random without an error.

    Args:
        model: The classifier.
        source: The model that was loaded from the file: the classifier itself, or the encoder inside it.
        loading: The report of ``from_pretrained`` about the file.
        where: The field that messages name.

    Raises:
        InputError: Tensors are missing, or have other sizes.
    """
    name, prefix = type(model).__name__, f"{source.base_model_prefix}."
    mismatched = {
        key: f"{key} {tuple(saved)} instead of {tuple(expected)}" for key, saved, expected in loading["mismatched_keys"]
    }
    if any(source is not model or key.startswith(prefix) for key in mismatched):
        problem = f"the weights file has other sizes than config.json: {_listed(sorted(mismatched.values()))}"
        raise InputError(where, problem, "give weights that were saved together with this config.json")
    if mismatched:
        problem = (
            "the head in the weights file was trained for another number of labels: "
            f"{_listed(sorted(mismatched.values()))}"
        )
        raise InputError(where, problem, "give the base model, which has no trained head")
    body = [key for key in dict(model.named_parameters()) if not in_head_or_pooler(key, model)]
    missing = [
        key for key in drawn_tensors(model, source, loading["missing_keys"]) if not in_head_or_pooler(key, model)
    ]
    if missing:
        problem = f"{len(missing)} of the {len(body)} tensors of {name} are not in the weights file: {_listed(missing)}"
        fix = "give all weights files of the model, saved from the architecture that config.json names"
        raise InputError(where, problem, fix)


def drawn_tensors(model: PreTrainedModel, source: PreTrainedModel, missing: Collection[str]) -> tuple[str, ...]:
    """Find the parameters and buffers of the classifier that were drawn at random, because the file does not have them.

    Args:
        model: The classifier.
        source: The model that was loaded from the file: the classifier itself, or the encoder inside it.
        missing: The tensors that the file does not have, by their names in ``source``.

    Returns:
        Their names in the classifier.
    """
    loaded = {id(tensor) for key, tensor in source.state_dict(keep_vars=True).items() if key not in missing}
    return tuple(key for key, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in loaded)


def unused_layers(source: PreTrainedModel, unexpected: Iterable[str]) -> tuple[str, ...]:
    """Find tensors of the weights file that belong to layers beyond the last one of the model.

    Args:
        source: The model that was loaded from the file.
        unexpected: The tensors that are in the file and not in the model; most belong to heads for other tasks.

    Returns:
        The names of the tensors, sorted.
    """

    def pattern(name: str) -> str:
        return "." + re.sub(r"\.\d+\.", ".*.", name)

    patterns = {pattern(name) for name in source.state_dict()}
    numbered = {name: pattern(name) for name in unexpected if re.search(r"\.\d+\.", name)}
    return tuple(
        sorted(
            name
            for name, own in numbered.items()
            if any(own.endswith(other) or other.endswith(own) for other in patterns)
        )
    )


def in_head_or_pooler(name: str, model: PreTrainedModel) -> bool:
    """Whether a parameter belongs to the head or the pooler, which a classifier may add to a pretrained model."""
    return not name.startswith(f"{model.base_model_prefix}.") or "pooler" in name.split(".")


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - MOST_LISTED} more" if len(items) > MOST_LISTED else ""
    return ", ".join(items[:MOST_LISTED]) + more
