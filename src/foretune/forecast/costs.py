"""Estimates of what a candidate costs on this machine: time and memory of its real run, disk for its tangents."""

import copy
import math
import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from peft import get_peft_model
from transformers import TrainingArguments

from foretune.task.candidate import Candidate
from foretune.task.matching import AdaptedModule
from foretune.task.task import Task

TIMED_BATCHES = 2
MAX_TIMED_ROWS = 16  # rows of a timed batch; the time of larger batches is extrapolated
OPTIMISER_BYTES = 12  # bytes per trained parameter: its gradient and two moments, in float32
BACKWARD = 1.5  # peak memory of the backward pass, as a multiple of the activations kept by the forward pass


@dataclass(frozen=True)
class Trial:
    """What a few training steps of a candidate took.

    Attributes:
        seconds: Time of one example, forward and backward pass together.
        saved_bytes: Bytes of activations that the forward pass keeps for the backward pass, per padded token.
        process_bytes: Memory before the steps: of the process with its libraries and the model, or allocated on the
            GPU.
    """

    seconds: float
    saved_bytes: float
    process_bytes: int


def try_steps(task: Task, candidate: Candidate, device: torch.device, batch_size: int) -> Trial:
    """Time forward and backward passes of a candidate's model on a batch of its training examples.

    Args:
        task: The model and the data; neither is changed.
        candidate: The candidate whose adapters are trained.
        device: Where the real run would be trained.
        batch_size: Batch size of the real run, in examples.

    Returns:
        Time and memory of these passes. The first pass warms up and is not timed.
    """
    rows = min(batch_size, MAX_TIMED_ROWS, len(task.train))
    spread = [round(i * (len(task.train) - 1) / max(rows - 1, 1)) for i in range(rows)]
    batch = {key: value.to(device) for key, value in task.collator([task.train[i] for i in spread]).items()}
    with torch.random.fork_rng():
        config = candidate.peft_config()
        config.init_lora_weights = True
        model = get_peft_model(copy.deepcopy(task.model), config).to(device).train()
        durations, saved = [], _Saved(model)
        process = _process_bytes(device)
        for number in range(1 + TIMED_BATCHES):  # the first pass warms up; its activations are counted
            start = time.perf_counter()
            with saved if number == 0 else torch.enable_grad():
                loss = model(**batch).loss
            loss.backward()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            durations.append(time.perf_counter() - start)
    tokens = batch["input_ids"].numel() if "input_ids" in batch else rows
    return Trial(min(durations[1:]) / rows, saved.bytes / tokens, process)


class _Saved(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that a forward pass keeps for the backward pass, without the model's own weights."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.bytes = 0
        self.seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        super().__init__(self._pack, lambda tensor: tensor)

    def _pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.seen:
            self.seen.add(storage.data_ptr())
            self.bytes += storage.nbytes()
        return tensor


def _process_bytes(device: torch.device) -> int:
    """Memory in use now, in bytes: by the process, or on its GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # not on Linux: take the largest amount so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_bytes(trial: Trial, arguments: TrainingArguments, rows: int, tokens: int, trainable: int) -> int:
    """Estimate the memory of a real run, in bytes.

    It is the sum of what is in use already, the activations of a batch of the longest texts, the gradients and the
    optimiser's state.

    Args:
        trial: Measurements of a few training steps.
        arguments: Training arguments of the real run.
        rows: Number of training examples; a batch holds no more than that.
        tokens: Length of the longest text, in tokens.
        trainable: Number of trained parameters.

    Returns:
        The number of bytes.
    """
    activations = BACKWARD * min(arguments.per_device_train_batch_size, rows) * tokens * trial.saved_bytes
    return int(trial.process_bytes + activations + OPTIMISER_BYTES * trainable)


def num_steps(rows: int, arguments: TrainingArguments) -> int:
    """Count the optimiser steps of a run in one process, on all of its GPUs, as ``Trainer`` counts them."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    per_epoch = max(math.ceil(_batches(rows, arguments) / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * per_epoch)


def num_examples(rows: int, arguments: TrainingArguments) -> int:
    """Count the examples that go through the model in a run; a step accumulates at most the batches of one epoch."""
    accumulated = min(arguments.gradient_accumulation_steps, max(_batches(rows, arguments), 1))
    return num_steps(rows, arguments) * min(arguments.train_batch_size * accumulated, rows)


def _batches(rows: int, arguments: TrainingArguments) -> int:
    """Number of batches in an epoch."""
    batches = rows / arguments.train_batch_size
    return math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)


def cache_values_per_token(modules: tuple[AdaptedModule, ...], directions: int) -> int:
    """Count the numbers that the tangents keep per token.

    These are every distinct input once, and ``directions`` gradients at the output of every module. Modules with the
    same parent and input size, such as query, key and value, are assumed to share their input.

    Args:
        modules: The adapted modules.
        directions: Number of feature directions along which gradients are kept.

    Returns:
        Numbers per token.
    """
    inputs = {(module.name.rpartition(".")[0], module.num_inputs) for module in modules}
    return sum(size for _, size in inputs) + directions * sum(module.num_outputs for module in modules)
