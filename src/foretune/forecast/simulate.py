"""A simulated fine-tune: the user's own training arguments, run on the tangent model."""

import dataclasses
import gc
import inspect
import tempfile
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import TrainerCallback, TrainingArguments

from foretune.forecast.movement import growth_of
from foretune.forecast.network import Relinearise
from foretune.linear import Moments, TangentModel
from foretune.tangents import Adapter, Head, Tangents, evaluating
from foretune.task import Candidate, Task
from foretune.train.loop import Run, loop_arguments, run_trainer

# what recomputing activations is called: the name of today, which outranks the one of before
CHECKPOINTING = [
    name
    for name in ("activation_checkpointing", "gradient_checkpointing")
    if name in {each.name for each in dataclasses.fields(TrainingArguments)}
]
BATCH = 64  # of evaluations: rows of larger ones do not stay near the processor
# what only concerns the hardware or the files of the real run
_NEUTRAL: dict[str, Any] = {
    "bf16": False,
    "fp16": False,
    "use_cpu": True,
    **dict.fromkeys(CHECKPOINTING[:1], False),
    "torch_compile": False,
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "push_to_hub": False,
    "report_to": "none",
    "remove_unused_columns": False,  # lengths stay for samplers that group by them
    "dataloader_num_workers": 0,
    "per_device_eval_batch_size": BATCH,
}


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
    model = TangentModel(
        tangents,
        adapters,
        head,
        config=task.model.config,
        accepts_loss_kwargs=accepts_loss_kwargs(task),
        growth=growth_of(task, tangents, [adapter.layer for adapter in adapters]) if growth else None,
    )
    train, evaluation = index_datasets(tangents, task)
    moments = None if refreshes else Moments(model, tangents.stored[tangents.num_train :], BATCH)
    with tempfile.TemporaryDirectory() as scratch, _garbage_set_aside():
        overrides = _NEUTRAL | loop_arguments(candidate.training) | {"seed": seed}
        args = candidate.training_arguments(scratch, **overrides)
        callbacks = [*watch, *([Relinearise(task, refreshes, Path(scratch))] if refreshes else [])]
        run, _ = run_trainer(
            model,
            args,
            train,
            evaluation,
            task.compute_metrics,
            collator=collate,
            callbacks=callbacks,
            proximal=candidate.proximal,
            moments=moments,
        )
    return run, model


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


def fitted_loss(model: TangentModel) -> float:
    """Mean loss of the training examples where a simulated run has come to."""
    tangents, total = model.tangents, 0.0
    with evaluating(model), torch.no_grad():
        for some in tangents.stored[: tangents.num_train].split(BATCH):
            total += float(model(some, tangents.labels[some]).loss) * len(some)
    return total / tangents.num_train


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
