"""The check-up before anything expensive: a description of data and model, and what every candidate would cost."""

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

MANY_TOKENS = 10**5  # above it, collecting tangents takes long, and the check-up suggests a sample


@dataclass(frozen=True)
class CandidateDiagnosis:
    """The modules that a candidate adapts, and its estimated cost.

    Attributes:
        name: Name of the candidate.
        modules: The adapted modules, with layer numbers folded together.
        num_modules: Number of adapted modules.
        trainable_parameters: Number of trained parameters, in adapters and head.
        steps: Number of optimiser steps of the real run.
        estimated_train_seconds: Time of the real run on this machine, without evaluation.
        estimated_train_bytes: Memory of the real run: libraries, weights, activations of the longest batch, optimiser.
        estimated_cache_bytes: Disk space for the candidate's tangents, at most: long texts are compressed.
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
    """The result of a check-up; fields that are neither measured nor counted are called ``estimated``."""

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
    """Load a ``run.yaml``, check all of it, time a few training steps and estimate the costs.

    It accepts exactly the files that ``foretune forecast`` accepts. Nothing is trained. A mistake in the file, the data
    or the model raises an ``InputError``, and so does a file in which no candidate can be forecast. If only some
    candidates cannot be forecast, they are listed in ``left_out``.

    Args:
        path: The YAML file.
        bytes_per_value: Bytes of a number in the tangent files.

    Returns:
        The check-up.
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
            steps=num_steps(len(task.train), own),
            estimated_train_seconds=trial.seconds * num_examples(len(task.train), own),
            estimated_train_bytes=train_bytes(
                trial, own, len(task.train), data.train_stats.tokens_max, adapted.num_trainable
            ),
            estimated_cache_bytes=tokens * cache_values_per_token(adapted.modules, directions) * bytes_per_value,
        )
        for candidate, adapted, own in zip(task.candidates, run.adaptations, arguments, strict=True)
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
    """Warnings about the candidates and about the cost of the tangents."""
    warnings = []
    tokens = data.train_stats.tokens_total + data.eval_stats.tokens_total
    if tokens > MANY_TOKENS:
        warnings.append(
            f"tangents of {tokens:,} tokens take long: forecast from a sample of the examples with --sample 1000"
        )
    for candidate, adaptation in zip(task.candidates, adaptations, strict=True):
        too_small = [m.name for m in adaptation.modules if m.rank > min(m.num_inputs, m.num_outputs)]
        if too_small:
            warnings.append(f"{candidate.name}: r is larger than the smaller side of {', '.join(folded(too_small))}")
        if not adaptation.heads:
            warnings.append(f"{candidate.name}: no head was found to train: name it in peft.modules_to_save")
    if text := about_experts(task.model):
        warnings.append(text)
    return warnings
