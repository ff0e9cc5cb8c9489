"""From ``run.yaml`` to a task, checked from end to end before anything is computed."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretune.task.candidate import Candidate, build_candidates
from foretune.task.capacity import check_capacity
from foretune.task.config import RunConfig, load_config
from foretune.task.data import EncodedData, encode_data, read_data
from foretune.task.data_warnings import data_warnings
from foretune.task.head_labels import head_labels, in_order_of_head
from foretune.task.matching import Adaptation, adaptation
from foretune.task.model import load_model, load_tokenizer, read_model_config
from foretune.task.model_warnings import model_warnings
from foretune.task.task import Task


@dataclass(frozen=True)
class LoadedRun:
    """A task with what was learnt while loading it: config, data numbers, what each candidate adapts.

    ``warnings`` are sentences about what can be used and may be a mistake, the worst first.
    """

    config: RunConfig
    task: Task
    data: EncodedData
    adaptations: tuple[Adaptation, ...]
    warnings: tuple[str, ...] = ()


def load_task(path: str | Path, candidate_names: Sequence[str] | None = None) -> Task:
    """Load and check the fine-tune that a ``run.yaml`` describes.

    Anything wrong in the file, the data, the model or a candidate is an ``InputError`` that names it.

    Args:
        path: The YAML file; relative paths in it start at its folder.
        candidate_names: Keep only these candidates; all when None.
    """
    return load_run(path, candidate_names).task


def load_run(path: str | Path, candidate_names: Sequence[str] | None = None) -> LoadedRun:
    """Like ``load_task``, with what was learnt on the way."""
    source = str(path)
    config = load_config(path)
    candidates = build_candidates(config, candidate_names)
    raw = read_data(config.data, config.model.task == "regression", source)
    where = f"{source}: model.path"
    model_config = read_model_config(config.model, where)
    tokenizer = load_tokenizer(config.model, where)
    head = head_labels(model_config) if config.model.pooling == "model" else None
    raw = in_order_of_head(raw, head)
    data = encode_data(raw, tokenizer, config.data.max_length, source)
    load = functools.partial(
        load_model,
        config.model,
        1 if data.labels is None else len(data.labels),
        data.labels,
        tokenizer.pad_token_id,
        where=where,
    )
    loaded = load(seed=int(config.training.get("seed", 42)))
    model = loaded.model
    check_capacity(model, tokenizer, data, source)
    task = Task(
        model,
        tokenizer,
        data.train,
        data.eval,
        "mean_squared_error" if data.labels is None else "cross_entropy",
        labels=data.labels,
        drawn=loaded.drawn,
        candidates=candidates,
        model_init=lambda seed: load(seed=seed).model,
        max_length=config.data.max_length,
        name=Path(path).resolve().parent.name if Path(path).stem == "run" else Path(path).stem,
    )
    adaptations = tuple(adaptation(model, candidate, _field(source, config, candidate)) for candidate in candidates)
    about_model = model_warnings(loaded, data.labels, head, candidates, adaptations)
    warnings = (*about_model, *data_warnings(raw, data), *config.notes)
    return LoadedRun(config, task, data, adaptations, warnings)


def _field(source: str, config: RunConfig, candidate: Candidate) -> str:
    spec = next(spec for spec in config.candidates if spec.name == candidate.name)
    index = config.candidates.index(spec)
    return f"{source}: candidates[{index}] ({spec.name}).peft" if spec.peft else f"{source}: peft"
