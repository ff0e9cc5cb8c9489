"""What a candidate would cost here: time and memory of its real run, disk for its tangents; all of it is estimated."""

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
MAX_TIMED_ROWS = 16  # of a batch; longer batches are extrapolated
OPTIMISER_BYTES = 12  # of a trained parameter: gradient and two moments in float32
BACKWARD = 1.5  # activations that are kept, and their gradients on the way back, over the former


@dataclass(frozen=True)
class Trial:
    """A few training steps of a candidate.

    Attributes:
        seconds: Of one example, forward and backward.
        saved_bytes: Activations of one padded token that are kept for the backward pass.
        process_bytes: Memory of the process with model and libraries, before the steps, or what a GPU has allocated.
    """

    seconds: float
    saved_bytes: float
    process_bytes: int


def try_steps(task: Task, candidate: Candidate, device: torch.device, batch_size: int) -> Trial:
    """Make forward and backward passes of a candidate's model on a batch of its training examples.

    Args:
        task: Model and data; neither is changed.
        candidate: Whose adapters are trained.
        device: Where it would be trained.
        batch_size: Of the real run.
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
        for number in range(1 + TIMED_BATCHES):  # the first warms up, and is weighed
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
    """Counts the bytes that a forward pass keeps for the backward pass, the model's own weights aside."""

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
    """Memory that is in use now: of the process, or on its GPU."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):  # no Linux: the most that was in use so far
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train_bytes(trial: Trial, arguments: TrainingArguments, tokens: int, trainable: int) -> int:
    """Memory of a real run: what is there, activations of a batch of the longest texts, gradients and the optimiser."""
    activations = BACKWARD * arguments.per_device_train_batch_size * tokens * trial.saved_bytes
    return int(trial.process_bytes + activations + OPTIMISER_BYTES * trainable)


def num_steps(rows: int, arguments: TrainingArguments) -> int:
    """Optimiser steps of a run in one process, on all of its GPUs, counted as ``Trainer`` does."""
    if arguments.max_steps > 0:
        return arguments.max_steps
    per_epoch = max(math.ceil(_batches(rows, arguments) / arguments.gradient_accumulation_steps), 1)
    return math.ceil(arguments.num_train_epochs * per_epoch)


def num_examples(rows: int, arguments: TrainingArguments) -> int:
    """Examples that go through the model in a run: a step accumulates no more batches than an epoch has."""
    accumulated = min(arguments.gradient_accumulation_steps, max(_batches(rows, arguments), 1))
    return num_steps(rows, arguments) * min(arguments.train_batch_size * accumulated, rows)


def _batches(rows: int, arguments: TrainingArguments) -> int:
    """Batches of an epoch."""
    batches = rows / arguments.train_batch_size
    return math.floor(batches) if arguments.dataloader_drop_last else math.ceil(batches)


def cache_values_per_token(modules: tuple[AdaptedModule, ...], directions: int) -> int:
    """Numbers kept per token: every distinct input once, and ``directions`` gradients at every module's output.

    Modules with the same parent and input size (query, key and value) are taken to share their input.
    """
    inputs = {(module.name.rpartition(".")[0], module.num_inputs) for module in modules}
    return sum(size for _, size in inputs) + directions * sum(module.num_outputs for module in modules)
