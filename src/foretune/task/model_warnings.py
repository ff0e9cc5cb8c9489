"""Warns about models that can be used but may be a mistake: parts stay random, or a trained head has other labels."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from foretune.task.candidate import Candidate
from foretune.task.head_labels import head_warning
from foretune.task.matching import Adaptation
from foretune.task.model import LoadedModel
from foretune.task.pooling import MeanPooledClassifier
from foretune.task.weights import in_head_or_pooler


def model_warnings(
    loaded: LoadedModel,
    labels: Sequence[str] | None,
    head_labels: Sequence[str] | None,
    candidates: Sequence[Candidate],
    adaptations: Sequence[Adaptation],
) -> tuple[str, ...]:
    """Find probable mistakes in the choice of a model.

    Args:
        loaded: The model as it was loaded.
        labels: The names of the classes; None for regression.
        head_labels: The labels of the model's own head; None if it has none.
        candidates: The candidates of the run.
        adaptations: What peft adapts and trains, one entry for every candidate.

    Returns:
        The warnings, one sentence each.
    """
    model, warnings = loaded.model, []
    names_by_parts: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for candidate, adaptation in zip(candidates, adaptations, strict=True):
        parts = untrained_parts(loaded.drawn, model, adaptation.heads)
        if parts:
            names_by_parts.setdefault((parts, adaptation.heads), []).append(candidate.name)
    for (parts, heads), names in names_by_parts.items():
        prefix = "" if len(names) == len(candidates) else f"{', '.join(names)}: "
        warnings.append(prefix + _untrained_warning(parts, model, heads))
    if loaded.unused:
        warnings.append(
            f"{len(loaded.unused)} tensors of the weights file, such as {loaded.unused[0]}, belong to layers that "
            "config.json does not have, and are left out: correct num_hidden_layers to use the whole model"
        )
    trained_head = not any(in_head_or_pooler(name, model) for name in loaded.drawn)
    if labels is not None and trained_head:
        warnings += filter(None, [head_warning(labels, head_labels, type(model).__name__)])
    return tuple(warnings)


def untrained_parts(names: Iterable[str], model: PreTrainedModel, heads: Sequence[str]) -> tuple[str, ...]:
    """Find the parts of a model that were drawn at random and are not trained.

    Args:
        names: Names of the parameters that were drawn at random.
        model: The classifier.
        heads: Names of the modules that are trained in full.

    Returns:
        Names of the parts, as peft's ``modules_to_save`` takes them.
    """
    if isinstance(model, MeanPooledClassifier):  # this model does not use the pooler
        return ()
    prefix = f"{model.base_model_prefix}."
    untrained = [name for name in names if not any(name.startswith(f"{head}.") for head in heads)]
    return tuple(dict.fromkeys("pooler" if name.startswith(prefix) else name.split(".")[0] for name in untrained))


def _untrained_warning(parts: Sequence[str], model: PreTrainedModel, heads: Sequence[str]) -> str:
    """The warning about parts that stay random."""
    save = ", ".join([*parts, *(head.rsplit(".", 1)[-1] for head in heads)])
    are, they_stay, them = ("is", "it stays", "it") if len(parts) == 1 else ("are", "they stay", "them")
    return (
        f"{' and '.join(parts)} of {type(model).__name__} {are} not in the weights file and "
        f"{are} not trained, so that {they_stay} random: write peft: {{modules_to_save: [{save}]}} to train {them}, "
        "or model: {pooling: mean} to use the mean of the token features instead"
    )
