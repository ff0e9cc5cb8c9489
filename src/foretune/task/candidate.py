"""Candidates: the ways in which a fine-tune could be run."""

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peft import LoraConfig, TaskType
from transformers import TrainingArguments

from foretune.errors import InputError
from foretune.task.arguments import build_lora
from foretune.task.config import CandidateSpec, ProximalSpec, RunConfig
from foretune.task.problems import nearest


@dataclass(frozen=True)
class Candidate:
    """A named combination of adapter, training arguments and proximal term.

    Args:
        name: Unique within a run, and usable as a folder name.
        peft: The adapter's config. peft changes the configs that it gets, so give it a copy from ``peft_config()``.
        training: Keys of ``transformers.TrainingArguments``; other keys have their default values.
        proximal: The proximal term, which pulls the trained parameters back toward their start; off by default.
    """

    name: str
    peft: LoraConfig
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    proximal: ProximalSpec = dataclasses.field(default_factory=ProximalSpec)

    def peft_config(self) -> LoraConfig:
        """A copy of the adapter's config, for sequence classification."""
        config = copy.deepcopy(self.peft)
        config.task_type = TaskType.SEQ_CLS
        return config

    def training_arguments(self, output_dir: str | Path, **overrides: Any) -> TrainingArguments:
        """Build the training arguments, as a user's own script would.

        Runs are reported to no tracker unless ``report_to`` is set.

        Args:
            output_dir: The folder of the run.
            **overrides: Further keys, which override those of the candidate.

        Returns:
            The training arguments.
        """
        keys = {"report_to": "none"} | self.training | {"output_dir": str(output_dir)} | overrides
        return TrainingArguments(**keys)

    @property
    def seed(self) -> int:
        """The seed of the head, the adapters and the order of batches; 42 by default, as in ``TrainingArguments``."""
        return int(self.training.get("seed", 42))

    def with_seed(self, seed: int) -> "Candidate":
        """The same candidate with another seed."""
        return dataclasses.replace(self, training=self.training | {"seed": seed})

    def peft_dict(self) -> dict[str, Any]:
        """The adapter's config as JSON: type, rank, scale and targets, and keys that differ from peft's defaults."""
        default = LoraConfig(task_type="SEQ_CLS")
        always_included = {"r", "lora_alpha", "target_modules"}
        names = [item.name for item in dataclasses.fields(LoraConfig) if item.name not in {"task_type", "peft_type"}]
        pairs = ((name, getattr(self.peft, name)) for name in names)
        changed = {name: value for name, value in pairs if name in always_included or value != getattr(default, name)}
        return {"type": "lora"} | {name: _jsonable(value) for name, value in changed.items()}

    def training_dict(self) -> dict[str, Any]:
        """The training keys of the candidate as JSON, without the token of the hub."""
        return {name: _jsonable(value) for name, value in self.training.items() if name != "hub_token"}

    def proximal_dict(self) -> dict[str, Any]:
        """The proximal term as JSON."""
        return self.proximal.model_dump()

    def to_json(self) -> dict[str, Any]:
        """The sections of the candidate, as its entry in result files has them; see :func:`configuration`."""
        return {"peft": self.peft_dict(), "training": self.training_dict(), "proximal": self.proximal_dict()}


def configuration(entry: dict[str, Any]) -> dict[str, Any]:
    """The settings of a candidate, from its entry in a result file.

    Args:
        entry: The entry. Without a proximal section the proximal term is off.

    Returns:
        The sections ``peft``, ``training`` and ``proximal``.
    """
    defaults = {"peft": {}, "training": {}, "proximal": ProximalSpec().model_dump()}
    return {section: entry.get(section) or default for section, default in defaults.items()}


def build_candidates(config: RunConfig, names: Sequence[str] | None = None) -> tuple[Candidate, ...]:
    """Build the candidates of a loaded ``run.yaml``, in the file's order.

    Args:
        config: The loaded file.
        names: Build only the candidates with these names; None for all.

    Returns:
        The candidates.

    Raises:
        InputError: There is no candidate with one of the names.
    """
    valid = [spec.name for spec in config.candidates]
    for name in names or ():
        if name not in valid:
            raise InputError("candidate", f"there is no candidate {name!r}", nearest(name, valid))
    return tuple(build_candidate(config, spec) for spec in config.candidates if names is None or spec.name in names)


def build_candidate(config: RunConfig, spec: CandidateSpec) -> Candidate:
    """Build one candidate: its keys override those of the base sections of a loaded ``run.yaml``."""
    peft, training, proximal = config.merged(spec)
    return Candidate(spec.name, build_lora(peft), training, ProximalSpec.model_validate(proximal))


def variation(base: Candidate, candidate: Candidate) -> CandidateSpec:
    """Describe a candidate by its changes to another one.

    Args:
        base: The candidate that the base sections of a ``run.yaml`` describe.
        candidate: Another candidate.

    Returns:
        The entry for ``candidate`` in the ``candidates`` of that file.
    """
    default = LoraConfig(task_type="SEQ_CLS")
    old, new = base.peft_dict(), candidate.peft_dict()
    peft = {key: new.get(key, getattr(default, key)) for key in old | new if old.get(key) != new.get(key)}
    training = {key: value for key, value in candidate.training.items() if value != base.training.get(key)}
    proximal = {} if candidate.proximal == base.proximal else candidate.proximal_dict()
    return CandidateSpec(name=candidate.name, peft=peft, training=training, proximal=proximal)


def _jsonable(value: Any) -> Any:
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_jsonable(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return _jsonable(dataclasses.asdict(value))
    return value if isinstance(value, str | int | float | bool | None) else str(value)
