"""What is surprising in a model that can be used: parts that stay random, a trained head with other labels."""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedModel

from foretune.task.candidate import Candidate
from foretune.task.head_labels import head_warning
from foretune.task.matching import Adaptation
from foretune.task.model import LoadedModel
from foretune.task.pooling import MeanPooledClassifier
from foretune.task.weights import is_new


def model_warnings(
    loaded: LoadedModel,
    labels: Sequence[str] | None,
    head_labels: Sequence[str] | None,
    candidates: Sequence[Candidate],
    adaptations: Sequence[Adaptation],
) -> tuple[str, ...]:
    """What to tell about the model of a run before anything is spent on it.

    Args:
        loaded: The model as it was loaded.
        labels: Names of the classes, None for regression.
        head_labels: Those of the model's own head, if it has any.
        candidates: The ways it could be run.
        adaptations: What each of these adapts.
    """
    model, found = loaded.model, []
    untrained: dict[tuple[tuple[str, ...], tuple[str, ...]], list[str]] = {}
    for candidate, adaptation in zip(candidates, adaptations, strict=True):
        parts = untrained_parts(loaded.drawn, model, adaptation.heads)
        if parts:
            untrained.setdefault((parts, adaptation.heads), []).append(candidate.name)
    for (parts, heads), names in untrained.items():
        prefix = "" if len(names) == len(candidates) else f"{', '.join(names)}: "
        found.append(prefix + _untrained(parts, model, heads))
    if loaded.unused:
        found.append(
            f"{len(loaded.unused)} tensors of the weights file, such as {loaded.unused[0]}, are of layers that "
            "config.json does not have, and are left out: correct num_hidden_layers if the whole model is meant"
        )
    trained_head = not any(is_new(name, model) for name in loaded.drawn)
    if labels is not None and trained_head:
        found += filter(None, [head_warning(labels, head_labels, type(model).__name__)])
    return tuple(found)


def untrained_parts(names: Iterable[str], model: PreTrainedModel, heads: Sequence[str]) -> tuple[str, ...]:
    """The parts of a model that were drawn at random and are not trained, by the names that peft knows them by.

    Args:
        names: The parameters that were drawn.
        model: The classifier.
        heads: The modules that are trained in full.
    """
    if isinstance(model, MeanPooledClassifier):  # it does not use the pooler
        return ()
    prefix = f"{model.base_model_prefix}."
    left = [name for name in names if not any(name.startswith(f"{head}.") for head in heads)]
    return tuple(dict.fromkeys("pooler" if name.startswith(prefix) else name.split(".")[0] for name in left))


def _untrained(parts: Sequence[str], model: PreTrainedModel, heads: Sequence[str]) -> str:
    """What these parts are, and what can be done about them."""
    save = ", ".join([*parts, *(head.rsplit(".", 1)[-1] for head in heads)])
    are, they, them = ("is", "it stays", "it") if len(parts) == 1 else ("are", "they stay", "them")
    return (
        f"{' and '.join(parts)} of {type(model).__name__} {are} not in the weights file. Drawn at random and not "
        f"trained, {they} random: write peft: {{modules_to_save: [{save}]}} to train {them}, "
        "or model: {pooling: mean} to do without"
    )
