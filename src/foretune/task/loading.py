"""Loads a task from ``run.yaml`` and checks all of it before anything is computed."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from foretune.task.candidate import Candidate, build_candidates
from foretune.task.capacity import check_capacity
from foretune.task.config import RunConfig, load_config
from foretune.task.data import EncodedData, encode_data, read_data
from foretune.task.data_warnings import data_warnings, few_evaluation_examples
from foretune.task.head_labels import head_labels, in_order_of_head
from foretune.task.matching import Adaptation, adaptation
from foretune.task.model import load_model, load_tokenizer, read_model_config
from foretune.task.model_warnings import model_warnings
from foretune.task.task import Task


@dataclass(frozen=True)
class LoadedRun:
    """A task, with the facts that were gathered while it was loaded.

    Attributes:
        config: The config of the run file.
        task: The task.
        data: The tokenised data with its counts.
        adaptations: What peft adapts and trains, one entry for every candidate.
        warnings: One sentence for everything that can be used but may be a mistake, the worst first.
    """

    config: RunConfig
    task: Task
    data: EncodedData
    adaptations: tuple[Adaptation, ...]
    warnings: tuple[str, ...] = ()


def load_task(path: str | Path, candidate_names: Sequence[str] | None = None) -> Task:
    """Load and check the fine-tune that a ``run.yaml`` describes.

    A mistake in the file, the data, the model or a candidate raises an ``InputError``, which names it.

    Args:
        path: The YAML file; relative paths in it start at its folder.
        candidate_names: Load only the candidates with these names; None for all.

    Returns:
        The task.
    """
    return load_run(path, candidate_names).task


def load_run(path: str | Path, candidate_names: Sequence[str] | None = None) -> LoadedRun:
    """Load and check the fine-tune that a ``run.yaml`` describes, and gather facts for warnings and reports.

    A mistake in the file, the data, the model or a candidate raises an ``InputError``, which names it.

    Args:
        path: The YAML file; relative paths in it start at its folder.
        candidate_names: Load only the candidates with these names; None for all.

    Returns:
        The loaded run.
    """
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
    adaptations = tuple(
        adaptation(model, candidate, _peft_field(source, config, candidate)) for candidate in candidates
    )
    about_model = model_warnings(loaded, data.labels, head, candidates, adaptations)
    warnings = (*about_model, *data_warnings(raw, data), *few_evaluation_examples(len(task.eval)), *config.notes)
    return LoadedRun(config, task, data, adaptations, warnings)


def _peft_field(source: str, config: RunConfig, candidate: Candidate) -> str:
    """The peft section of a candidate in messages: its own or, without one, that of the base."""
    spec = next(spec for spec in config.candidates if spec.name == candidate.name)
    index = config.candidates.index(spec)
    return f"{source}: candidates[{index}] ({spec.name}).peft" if spec.peft else f"{source}: peft"
