"""A simulated fine-tune: the user's own training arguments, run on the tangent model."""

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

# what recomputing activations is called: the name of today, which outranks the one of before
CHECKPOINTING = [
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {each.name for each in dataclasses.fields(TrainingArguments)}
]
PARAMETERS = 2**23  # of adapters that are simulated in lockstep: each is kept at up to sixteen moments
BATCH = 64  # of evaluations: rows of larger ones do not stay near the processor
# what only concerns the hardware or the files of the real run
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
    "remove_unused_columns": False,  # lengths stay for samplers that group by them
    "dataloader_num_workers": 0,
    "dataloader_persistent_workers": False,
    "dataloader_prefetch_factor": None,
    "per_device_eval_batch_size": BATCH,
}


class Start(NamedTuple):
    """What a simulated run starts from, and the callbacks that watch its tangent model."""

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
    """Train the tangent model as ``Trainer`` would train the network from this seed's adapters and head.

    On the way, tangents are taken again ``refreshes`` times at the simulated weights, each a pass over the network, and
    the callbacks in ``watch`` see the tangent model. Without ``growth``, outputs are what the tangents alone say.
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
    """Simulations of many candidates: in lockstep where they go ``together``, which changes nothing but the time.

    Args:
        tangents: Of the task and its head of this seed.
        task: The task.
        starts: Of every simulation.
        seed: Of all.
        refreshes: How often tangents are taken again in each, which then goes alone.
        progress: Called with the number of simulations that are done, those that go on in proportion to their steps.
    """
    found: dict[int, tuple[Run, TangentModel]] = {}
    tell = progress or (lambda _: None)
    for group in [[each] for each in starts] if refreshes else together(starts):
        if len(group) == 1:
            candidate, adapters, head, watch = group[0]
            results = [simulate(tangents, task, candidate, adapters, head, seed, refreshes=refreshes, watch=watch)]
        else:
            results = _in_lockstep(tangents, task, group, seed, len(found), tell)
        found |= {id(start): result for start, result in zip(group, results, strict=True)}
        tell(len(found))
    return [found[id(start)] for start in starts]


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
    """Those whose simulations may go in lockstep: they differ in adapters and learning rate only.

    Those with dropout in their adapters draw one number more in every step than the others and are apart from them;
    those with a proximal term go alone. No group's adapters have more than ``PARAMETERS`` numbers in all.
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
    return sum(each.a.numel() + each.b.numel() for each in start.adapters)


def _model(tangents: Tangents, task: Task, start: Start, growth: bool = True) -> TangentModel:
    return TangentModel(
        tangents,
        start.adapters,
        start.head,
        config=copy.deepcopy(task.model.config),  # Trainer writes into it
        accepts_loss_kwargs=accepts_loss_kwargs(task),
        growth=growth_of(task, tangents, [adapter.layer for adapter in start.adapters]) if growth else None,
    )


def _moments(models: Sequence[TangentModel]) -> Moments:
    tangents = models[0].tangents
    return Moments(models, tangents.stored[tangents.num_train :], BATCH)


def simulated_arguments(candidate: Candidate, scratch: str, seed: int) -> TrainingArguments:
    """The arguments of a simulated run: the candidate's own, but for hardware and files."""
    together = candidate.training_arguments(scratch).train_batch_size  # of all GPUs that the real run takes
    overrides = _NEUTRAL | loop_arguments(candidate.training) | without_choice(candidate.training)
    overrides |= {"seed": seed, "per_device_train_batch_size": together}
    return candidate.training_arguments(scratch, **overrides)


@contextmanager
def _garbage_set_aside() -> Generator[None]:
    """Let garbage be collected among what is made inside only.

    A run begins with a collection (accelerate's ``free_memory``), which takes a tenth of a short simulated one to walk
    through everything that the libraries have loaded.
    """
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def fitted_losses(models: Sequence[TangentModel]) -> list[float]:
    """Mean loss of the training examples where simulated runs have come to."""
    found: dict[int, float] = {}
    for tangents in {id(model.tangents): model.tangents for model in models}.values():
        own = [model for model in models if model.tangents is tangents]
        some = tangents.stored[: tangents.num_train]
        tables = outputs_at([(model, dict(model.named_parameters())) for model in own], some.split(BATCH))
        for model, outputs in zip(own, tables, strict=True):
            found[id(model)] = float(mean_loss(tangents.loss, outputs[some], tangents.labels[some]))
    return [found[id(model)] for model in models]


def index_datasets(tangents: Tangents, task: Task) -> tuple[Dataset, Dataset]:
    """The splits with examples given by number; lengths let ``Trainer`` group them as it would group the texts.

    Where tangents are of a sample of the training examples, these stand for the others in turn, so that a run takes as
    many steps as the real one. Evaluation examples come in the order in which their rows are stored, so that batches of
    them are read as they lie.
    """
    lengths = tangents.counts[tangents.place]
    columns = {"index": torch.arange(tangents.num_examples), "labels": tangents.labels, "length": lengths}
    train, evaluation = (
        Dataset.from_dict({name: values[chosen].tolist() for name, values in columns.items()})
        for chosen in (torch.arange(len(task.train)) % tangents.num_train, tangents.stored[tangents.num_train :])
    )
    return train, evaluation


def collate(rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
    """A batch of numbered examples."""
    return {name: torch.tensor([row[name] for row in rows]) for name in ("index", "labels") if name in rows[0]}


def accepts_loss_kwargs(task: Task) -> bool:
    """Whether ``Trainer`` leaves the averaging over accumulated batches to the model, by the rule it uses itself."""
    model = task.model
    if hasattr(model, "accepts_loss_kwargs"):
        return bool(model.accepts_loss_kwargs)
    kinds = {parameter.kind for parameter in inspect.signature(model.forward).parameters.values()}
    return inspect.Parameter.VAR_KEYWORD in kinds
