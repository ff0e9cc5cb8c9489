"""The check-up before anything is spent: how data and model look, what each candidate would cost."""

from dataclasses import dataclass
from pathlib import Path

from foretune.forecast.advice import about_experts
from foretune.forecast.costs import cache_values_per_token, num_examples, num_steps, train_bytes, try_steps
from foretune.forecast.eligibility import examine
from foretune.task.data import EncodedData, SplitStats
from foretune.task.loading import load_run
from foretune.task.matching import Adaptation
from foretune.task.module_names import folded
from foretune.task.task import Task, directions_taken

MANY_TOKENS = 10**5


@dataclass(frozen=True)
class CandidateDiagnosis:
    """What a candidate adapts and what it is estimated to cost.

    Args:
        name: The candidate.
        modules: The adapted modules, with layer numbers folded together.
        num_modules: How many they are.
        trainable_parameters: Adapter and head.
        steps: Optimiser steps of the real run.
        estimated_train_seconds: Time of the real run here, from the timed batches; evaluation is not in it.
        estimated_train_bytes: Memory of the real run: libraries, weights, activations of the longest batch, optimiser.
        estimated_cache_bytes: Disk for this candidate's tangents, at most: long texts are compressed.
    """

    name: str
    modules: tuple[str, ...]
    num_modules: int
    trainable_parameters: int
    steps: int
    estimated_train_seconds: float
    estimated_train_bytes: int
    estimated_cache_bytes: int


@dataclass(frozen=True)
class Diagnosis:
    """A check-up as plain data; every field that is not measured or counted is called ``estimated``."""

    name: str
    train: SplitStats
    eval: SplitStats
    overlap: int
    labels: tuple[str, ...] | None
    max_length: int
    metric_name: str
    model_class: str
    parameters: int
    dtype: str
    attention: str
    heads: tuple[str, ...]
    device: str
    seconds_per_example: float
    candidates: tuple[CandidateDiagnosis, ...]
    left_out: tuple[dict[str, str], ...]
    warnings: tuple[str, ...]


def diagnose(path: str | Path, bytes_per_value: int = 2) -> Diagnosis:
    """Load a ``run.yaml``, check all of it, make a few training steps and estimate the rest.

    It takes what ``foretune forecast`` takes, and nothing else. Nothing is trained. Anything wrong in the file, the
    data, the model or every candidate is an ``InputError``; a candidate that cannot be forecast is in ``left_out``.

    Args:
        path: The YAML file.
        bytes_per_value: Of the numbers in the tangent cache.
    """
    examined = examine(load_run(path), path)
    run = examined.loaded
    task, data = run.task, run.data
    arguments = [candidate.training_arguments("unused") for candidate in task.candidates]
    device = arguments[0].device
    trial = try_steps(task, task.candidates[0], device, arguments[0].per_device_train_batch_size)
    directions = directions_taken(2 * max(task.num_outputs - 1, 1))
    tokens = data.train_stats.tokens_total + data.eval_stats.tokens_total
    per_candidate = tuple(
        CandidateDiagnosis(
            name=candidate.name,
            modules=tuple(folded([module.name for module in adapted.modules])),
            num_modules=len(adapted.modules),
            trainable_parameters=adapted.num_trainable,
            steps=num_steps(len(task.train), asked),
            estimated_train_seconds=trial.seconds * num_examples(len(task.train), asked),
            estimated_train_bytes=train_bytes(trial, asked, data.train_stats.tokens_max, adapted.num_trainable),
            estimated_cache_bytes=tokens * cache_values_per_token(adapted.modules, directions) * bytes_per_value,
        )
        for candidate, adapted, asked in zip(task.candidates, run.adaptations, arguments, strict=True)
    )
    return Diagnosis(
        name=task.name,
        train=data.train_stats,
        eval=data.eval_stats,
        overlap=data.overlap,
        labels=task.labels,
        max_length=run.config.data.max_length,
        metric_name=task.metric_name,
        model_class=type(task.model).__name__,
        parameters=task.model.num_parameters(),
        dtype=str(task.model.dtype).removeprefix("torch."),
        attention=str(task.model.config._attn_implementation),
        heads=run.adaptations[0].heads,
        device=str(device),
        seconds_per_example=trial.seconds,
        candidates=per_candidate,
        left_out=tuple(examined.left_out),
        warnings=(*run.warnings, *_warnings(data, task, run.adaptations)),
    )


def _warnings(data: EncodedData, task: Task, adaptations: tuple[Adaptation, ...]) -> list[str]:
    """What to say about candidates and about what tangents cost."""
    found = []
    tokens = data.train_stats.tokens_total + data.eval_stats.tokens_total
    if tokens > MANY_TOKENS:
        found.append(f"{tokens:,} tokens to cache: let some examples stand for all, foretune forecast --sample 1000")
    for candidate, adaptation in zip(task.candidates, adaptations, strict=True):
        wide = [m.name for m in adaptation.modules if m.rank > min(m.num_inputs, m.num_outputs)]
        if wide:
            found.append(f"{candidate.name}: r is larger than the smaller side of {', '.join(folded(wide))}")
        if not adaptation.heads:
            found.append(f"{candidate.name}: no head was found to train: name it in peft.modules_to_save")
    if text := about_experts(task.model):
        found.append(text)
    return found
