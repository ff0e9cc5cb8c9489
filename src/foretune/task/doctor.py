"""The check-up before anything is spent: how data and model look, what each candidate would cost."""

import copy
import math
import re
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import TrainingArguments

from foretune.task.candidate import Candidate
from foretune.task.data import EncodedData, SplitStats
from foretune.task.loading import load_run
from foretune.task.matching import Adaptation, AdaptedModule
from foretune.task.task import Task, directions_taken

TIMED_BATCHES = 2
MAX_TIMED_ROWS = 16  # per batch; longer batches are extrapolated
MANY_TOKENS = 10**5
ACTIVATIONS_PER_LAYER = 16  # values kept for backward per token and hidden unit: a rule of thumb for transformers


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
        estimated_train_bytes: Memory of the real run: weights, optimiser and, roughly, activations.
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
    warnings: tuple[str, ...]


def diagnose(path: str | Path, bytes_per_value: int = 2) -> Diagnosis:
    """Load a ``run.yaml``, check it all, time two batches and estimate the rest; nothing is trained.

    Anything wrong in the file, the data, the model or a candidate is an ``InputError``.

    Args:
        path: The YAML file.
        bytes_per_value: Of the numbers in the tangent cache.
    """
    run = load_run(path)
    task, data = run.task, run.data
    arguments = [candidate.training_arguments("unused") for candidate in task.candidates]
    device = arguments[0].device
    seconds = time_per_example(task, task.candidates[0], device, arguments[0].per_device_train_batch_size)
    directions = directions_taken(2 * max(task.num_outputs - 1, 1))
    tokens = data.train_stats.tokens_total + data.eval_stats.tokens_total
    per_candidate = tuple(
        CandidateDiagnosis(
            name=candidate.name,
            modules=tuple(compress([module.name for module in found.modules])),
            num_modules=len(found.modules),
            trainable_parameters=found.num_trainable,
            steps=num_steps(len(task.train), asked),
            estimated_train_seconds=seconds * num_steps(len(task.train), asked) * _rows_per_step(asked),
            estimated_train_bytes=_train_bytes(task, found, asked, data.train_stats.tokens_max),
            estimated_cache_bytes=tokens * cache_values_per_token(found.modules, directions) * bytes_per_value,
        )
        for candidate, found, asked in zip(task.candidates, run.adaptations, arguments, strict=True)
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
        seconds_per_example=seconds,
        candidates=per_candidate,
        warnings=(*run.warnings, *_warnings(data, task, run.adaptations)),
    )


def time_per_example(task: Task, candidate: Candidate, device: torch.device, batch_size: int) -> float:
    """Seconds of one example's forward and backward with the candidate's adapter, from two batches."""
    rows = min(batch_size, MAX_TIMED_ROWS, len(task.train))
    spread = [round(i * (len(task.train) - 1) / max(rows - 1, 1)) for i in range(rows)]
    batch = {key: value.to(device) for key, value in task.collator([task.train[i] for i in spread]).items()}
    with torch.random.fork_rng():
        config = candidate.peft_config()
        config.init_lora_weights = True
        model = get_peft_model(copy.deepcopy(task.model), config).to(device).train()
        durations = []
        for _ in range(1 + TIMED_BATCHES):  # the first warms up
            start = time.perf_counter()
            model(**batch).loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            durations.append(time.perf_counter() - start)
    return min(durations[1:]) / rows


def num_steps(rows: int, arguments: TrainingArguments) -> int:
    """Optimiser steps of a run in one process, on all of its GPUs, counted as ``Trainer`` does."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    batches = rows / arguments.train_batch_size
    count = math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)
    per_epoch = max(math.ceil(count / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * per_epoch)


def cache_values_per_token(modules: tuple[AdaptedModule, ...], directions: int) -> int:
    """Numbers kept per token: each distinct input once, and ``directions`` gradients at each module's output.

    Modules with the same parent and input size (query, key and value) are taken to share their input.
    """
    inputs = {(module.name.rpartition(".")[0], module.num_inputs) for module in modules}
    return sum(size for _, size in inputs) + directions * sum(module.num_outputs for module in modules)


def compress(names: list[str]) -> list[str]:
    """Fold names that differ in one layer number: ``layer.{0-5}.attention.self.query``."""
    groups: dict[tuple[str, str], list[int]] = {}
    plain = []
    for name in names:
        match = re.search(r"(?<=\.)\d+(?=\.|$)", name)
        if match:
            groups.setdefault((name[: match.start()], name[match.end() :]), []).append(int(match.group()))
        else:
            plain.append(name)
    return plain + [f"{head}{_numbers(sorted(found))}{tail}" for (head, tail), found in groups.items()]


def _numbers(found: list[int]) -> str:
    if len(found) == 1:
        return str(found[0])
    runs: list[list[int]] = []
    for number in found:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return "{" + ",".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs) + "}"


def _rows_per_step(arguments: TrainingArguments) -> int:
    return arguments.train_batch_size * arguments.gradient_accumulation_steps


def _train_bytes(task: Task, found: Adaptation, arguments: TrainingArguments, tokens: int) -> int:
    """Weights once, three float32 copies of what trains (gradient, two moments), roughly the activations."""
    config, size = task.model.config, task.model.dtype.itemsize
    hidden, layers = getattr(config, "hidden_size", 0), getattr(config, "num_hidden_layers", 0)
    per_token = hidden * layers * ACTIVATIONS_PER_LAYER * size
    activations = arguments.per_device_train_batch_size * tokens * per_token
    return task.model.num_parameters() * size + 12 * found.num_trainable + activations


def _warnings(data: EncodedData, task: Task, adaptations: tuple[Adaptation, ...]) -> list[str]:
    """What to say about candidates and about what tangents cost."""
    found = []
    tokens = data.train_stats.tokens_total + data.eval_stats.tokens_total
    if tokens > MANY_TOKENS:
        found.append(f"{tokens:,} tokens to cache: let some examples stand for all, foretune forecast --sample 1000")
    for candidate, adaptation in zip(task.candidates, adaptations, strict=True):
        wide = [m.name for m in adaptation.modules if m.rank > min(m.num_inputs, m.num_outputs)]
        if wide:
            found.append(f"{candidate.name}: r is larger than the smaller side of {', '.join(compress(wide))}")
        if not adaptation.heads:
            found.append(f"{candidate.name}: no head was found to train: name it in peft.modules_to_save")
    return found
