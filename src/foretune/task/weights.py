"""What of a model is not in its weights file."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from foretune.errors import InputError

SHOWN = 4  # tensors that a message names


def check_weights(model: PreTrainedModel, source: PreTrainedModel, loading: Mapping[str, Any], where: str) -> None:
    """See that the weights file has all of the model but its head and its pooler, in the sizes of its config.

    A tensor that is missing is drawn at random without an error, and a model that does not fit stays random.

    Args:
        model: The classifier.
        source: What was loaded from the file: the classifier itself, or what it was made from.
        loading: What ``from_pretrained`` says about the file.
        where: The field that messages name.

    Raises:
        InputError: Tensors are missing, or have other sizes.
    """
    name, prefix = type(model).__name__, f"{source.base_model_prefix}."
    wrong = {key: f"{key} {tuple(there)} instead of {tuple(here)}" for key, there, here in loading["mismatched_keys"]}
    if any(source is not model or key.startswith(prefix) for key in wrong):
        found = f"the weights file has other sizes than config.json: {_listed(sorted(wrong.values()))}"
        raise InputError(where, found, "give weights that were saved together with this config.json")
    if wrong:
        found = f"the head in the weights file does not fit these labels: {_listed(sorted(wrong.values()))}"
        fix = "it was trained for another number of labels: give the base model that it was made from"
        raise InputError(where, found, fix)
    body = [key for key in dict(model.named_parameters()) if not is_new(key, model)]
    absent = [key for key in drawn(model, source, loading["missing_keys"]) if not is_new(key, model)]
    if absent:
        found = f"{len(absent)} of the {len(body)} tensors of {name} are not in the weights file: {_listed(absent)}"
        fix = "give all of its weights files, saved from the architecture named in config.json"
        raise InputError(where, found, fix)


def drawn(model: PreTrainedModel, source: PreTrainedModel, missing: Collection[str]) -> tuple[str, ...]:
    """The parameters and buffers of the classifier that are not from the weights file.

    Args:
        model: The classifier.
        source: What was loaded from the file.
        missing: What the file does not have, as it is called in ``source``.
    """
    there = {id(tensor) for key, tensor in source.state_dict(keep_vars=True).items() if key not in missing}
    return tuple(key for key, tensor in model.state_dict(keep_vars=True).items() if id(tensor) not in there)


def unused_layers(source: PreTrainedModel, unexpected: Iterable[str]) -> tuple[str, ...]:
    """Tensors of the weights file that belong to further layers like those that the model has.

    Args:
        source: What was loaded from the file.
        unexpected: What is in the file and not in the model; heads for other tasks, for the most part.
    """

    def kind(name: str) -> str:
        return "." + re.sub(r"\.\d+\.", ".*.", name)

    kinds = {kind(name) for name in source.state_dict()}
    numbered = ((name, kind(name)) for name in unexpected if re.search(r"\.\d+\.", name))
    return tuple(sorted(name for name, its in numbered if any(its.endswith(k) or k.endswith(its) for k in kinds)))


def is_new(name: str, model: PreTrainedModel) -> bool:
    """Whether a parameter belongs to what a classifier may add to a pretrained model: its head or its pooler."""
    return not name.startswith(f"{model.base_model_prefix}.") or "pooler" in name.split(".")


def _listed(items: Sequence[str]) -> str:
    more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
    return ", ".join(items[:SHOWN]) + more
