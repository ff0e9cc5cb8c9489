"""Simulate fine-tunes: train the tangent model with ``Trainer`` and the user's own training arguments.

The *tangent model* has the candidate's adapters and head as its parameters. Its outputs are those of the network, to
first order in the change of the network's weights (docs/theory.md section 6).
"""

import copy
import dataclasses
import gc
import inspect
import json
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from foretune.forecast.expected import expected_metrics
from foretune.forecast.movement import growth_of
from foretune.forecast.network import Relinearise
from foretune.linear import Lockstep, Moments, TangentModel, mean_loss, outputs_at
from foretune.tangents import Adapter, Head, Tangents
from foretune.task import Candidate, Task
from foretune.train.arguments import loop_arguments, without_choice
from foretune.train.curve import Run
from foretune.train.loop import run_trainer
from foretune.train.together import can_share, run_together

# The names under which TrainingArguments recomputes activations. A newer version prefers the first name.
CHECKPOINTING = [
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {field.name for field in dataclasses.fields(TrainingArguments)}
]
PARAMETERS = 2**23  # adapter parameters that are simulated in lockstep at most; up to sixteen copies are kept
BATCH = 64  # examples per batch of an evaluation; the rows of larger batches do not fit into the processor's cache
# Arguments that concern only the hardware or the files of the real run, and their values in a simulation.
_NEUTRAL: dict[str, Any] = {
    "bf16": False,
    "fp16": False,
    "bf16_full_eval": False,
    "fp16_full_eval": False,
    "use_cpu": True,
    **dict.fromkeys(CHECKPOINTING[:1], False),
    "torch_compile": False,
    "use_liger_kernel": False,
    "debug": "",
    "skip_memory_metrics": True,
    "include_num_input_tokens_seen": "no",
    "enable_jit_checkpoint": False,
    "save_strategy": "no",
    "push_to_hub": False,
    "report_to": "none",
    "remove_unused_columns": False,  # samplers that group examples by length need the lengths
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "per_device_eval_batch_size": BATCH,
}


class Start(NamedTuple):
    """What a simulated run starts from.

    Attributes:
        candidate: The candidate.
        adapters: Its adapters before training.
        head: Its head before training.
        watch: Callbacks that are given the tangent model during the run.
    """

    candidate: Candidate
    adapters: list[Adapter]
    head: Head
    watch: Sequence[TrainerCallback] = ()


def simulate(
    tangents: Tangents,
    task: Task,
    candidate: Candidate,
    adapters: list[Adapter],
    head: Head,
    seed: int,
    *,
    refreshes: int = 0,
    growth: bool = True,
    watch: Sequence[TrainerCallback] = (),
) -> tuple[Run, TangentModel]:
    """Train the tangent model as ``Trainer`` would train the network.

    Args:
        tangents: Tangents of the task, with the head of this seed.
        task: The task.
        candidate: The candidate.
        adapters: The adapters that the run starts from.
        head: The head that the run starts from.
        seed: Seed of the run.
        refreshes: How often new tangents are taken at the simulated weights; every time costs a pass over the network.
        growth: Whether features outgrow their tangents, as in real runs; without it outputs come from tangents alone.
        watch: Callbacks that are given the tangent model.

    Returns:
        The run, and the tangent model at its end.
    """
    model = _model(tangents, task, Start(candidate, adapters, head), growth)
    train, evaluation = index_datasets(tangents, task)
    moments = None if refreshes else _moments([model])
    with tempfile.TemporaryDirectory() as scratch, _garbage_set_aside():
        callbacks = [*watch, *([Relinearise(task, refreshes, Path(scratch))] if refreshes else [])]
        run, _ = run_trainer(
            model,
            simulated_arguments(candidate, scratch, seed),
            train,
            evaluation,
            partial(expected_metrics, task),
            collator=collate,
            callbacks=callbacks,
            proximal=candidate.proximal,
            moments=moments,
        )
    return run, model


def simulate_all(
    tangents: Tangents,
    task: Task,
    starts: Sequence[Start],
    seed: int,
    *,
    refreshes: int = 0,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[Run, TangentModel]]:
    """Simulate many candidates.

    Simulations that ``together`` groups run in lockstep, as one model. That only saves time: the results are the same.

    Args:
        tangents: Tangents of the task, with the head of this seed.
        task: The task.
        starts: The start of every simulation.
        seed: Seed of all simulations.
        refreshes: How often new tangents are taken in every simulation. If there are any, every simulation runs alone.
        progress: Called with the number of finished simulations; a running one counts as the share of its steps.

    Returns:
        The run and the tangent model at its end, in the order of ``starts``.
    """
    done: dict[int, tuple[Run, TangentModel]] = {}
    tell = progress or (lambda _: None)
    for group in [[start] for start in starts] if refreshes else together(starts):
        if len(group) == 1:
            candidate, adapters, head, watch = group[0]
            results = [simulate(tangents, task, candidate, adapters, head, seed, refreshes=refreshes, watch=watch)]
        else:
            results = _in_lockstep(tangents, task, group, seed, len(done), tell)
        done |= {id(start): result for start, result in zip(group, results, strict=True)}
        tell(len(done))
    return [done[id(start)] for start in starts]


def _in_lockstep(
    tangents: Tangents, task: Task, starts: Sequence[Start], seed: int, done: int, tell: Callable[[int], None]
) -> list[tuple[Run, TangentModel]]:
    models = [_model(tangents, task, start) for start in starts]
    train, evaluation = index_datasets(tangents, task)
    with tempfile.TemporaryDirectory() as scratch, _garbage_set_aside():
        runs = run_together(
            Lockstep(models),
            [simulated_arguments(start.candidate, scratch, seed) for start in starts],
            train,
            evaluation,
            partial(expected_metrics, task),
            collator=collate,
            watch=[start.watch for start in starts],
            moments=_moments(models),
            progress=lambda step, steps: tell(done + len(starts) * step // steps),
        )
    return list(zip(runs, models, strict=True))


def together(starts: Sequence[Start]) -> list[list[Start]]:
    """Group the simulations that can run in lockstep: those that differ only in adapters and learning rate.

    Candidates with dropout in their adapters draw one more random number in every step, so they are not grouped with
    candidates without. Candidates with a proximal term run alone. The adapters of a group have at most ``PARAMETERS``
    parameters in all.

    Args:
        starts: The start of every simulation.

    Returns:
        The groups.
    """
    groups: list[list[Start]] = []
    open_groups: dict[str, list[Start]] = {}
    for start in starts:
        candidate = start.candidate
        training = {name: value for name, value in candidate.training.items() if name != "learning_rate"}
        key = json.dumps([candidate.peft.lora_dropout > 0, training], sort_keys=True, default=str)
        group = open_groups.get(key)
        if candidate.proximal.strength > 0 or not can_share(simulated_arguments(candidate, "", candidate.seed)):
            groups.append([start])
        elif group and sum(map(_size, [*group, start])) <= PARAMETERS:
            group.append(start)
        else:
            groups.append([start])
            open_groups[key] = groups[-1]
    return groups


def _size(start: Start) -> int:
    return sum(adapter.a.numel() + adapter.b.numel() for adapter in start.adapters)


def _model(tangents: Tangents, task: Task, start: Start, growth: bool = True) -> TangentModel:
    return TangentModel(
        tangents,
        start.adapters,
        start.head,
        config=copy.deepcopy(task.model.config),  # Trainer changes it
        accepts_loss_kwargs=accepts_loss_kwargs(task),
        growth=growth_of(task, tangents, [adapter.layer for adapter in start.adapters]) if growth else None,
    )


def _moments(models: Sequence[TangentModel]) -> Moments:
    tangents = models[0].tangents
    return Moments(models, tangents.stored[tangents.num_train :], BATCH)


def simulated_arguments(candidate: Candidate, scratch: str, seed: int) -> TrainingArguments:
    """Return the arguments of a simulated run: the candidate's own, except for hardware and files."""
    batch_size = candidate.training_arguments(scratch).train_batch_size  # over all GPUs of the real run
    overrides = _NEUTRAL | loop_arguments(candidate.training) | without_choice(candidate.training)
    overrides |= {"seed": seed, "per_device_train_batch_size": batch_size}
    return candidate.training_arguments(scratch, **overrides)


@contextmanager
def _garbage_set_aside() -> Generator[None]:
    """Restrict garbage collection to the objects that are made inside the block.

    A run begins with a garbage collection (accelerate's ``free_memory``). Walking through all objects of the libraries
    takes a tenth of the time of a short simulated run.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fitted_losses(models: Sequence[TangentModel]) -> list[float]:
    """Return the mean loss of the training examples at the end of every simulated run."""
    losses: dict[int, float] = {}
    for tangents in {id(model.tangents): model.tangents for model in models}.values():
        sharing = [model for model in models if model.tangents is tangents]
        train = tangents.stored[: tangents.num_train]
        tables = outputs_at([(model, dict(model.named_parameters())) for model in sharing], train.split(BATCH))
        for model, outputs in zip(sharing, tables, strict=True):
            losses[id(model)] = float(mean_loss(tangents.loss, outputs[train], tangents.labels[train]))
    return [losses[id(model)] for model in models]


def index_datasets(tangents: Tangents, task: Task) -> tuple[Dataset, Dataset]:
    """Return the training and evaluation data as numbers of examples.

    The data include lengths, so that ``Trainer`` can group examples as it would group the texts. If the tangents cover
    only a sample of the training examples, the sample is repeated, so that a run has as many steps as the real run.
    Evaluation examples are in the order in which their rows are stored, so that batches of them are read quickly.

    Args:
        tangents: The tangents.
        task: The task.

    Returns:
        The training data and the evaluation data.
    """
    lengths = tangents.counts[tangents.place]
    columns = {"index": torch.arange(tangents.num_examples), "labels": tangents.labels, "length": lengths}
    train, evaluation = (
        Dataset.from_dict({name: values[chosen].tolist() for name, values in columns.items()})
        for chosen in (torch.arange(len(task.train)) % tangents.num_train, tangents.stored[tangents.num_train :])
    )
    return train, evaluation


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """Make a batch from numbered examples."""
    return {name: torch.tensor([row[name] for row in rows]) for name in ("index", "labels") if name in rows[0]}


def accepts_loss_kwargs(task: Task) -> bool:
    """Whether ``Trainer`` leaves the averaging over accumulated batches to the model, by the rule of ``Trainer``."""
    model = task.model
    if hasattr(model, "accepts_loss_kwargs"):
        return bool(model.accepts_loss_kwargs)
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds
