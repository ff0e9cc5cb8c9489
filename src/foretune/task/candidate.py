"""A candidate: one way the fine-tune could be run."""

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
        peft: The adapter. Hand ``peft_config()`` to peft, not this: peft changes the configs it is given.
        training: Keys of ``transformers.TrainingArguments``; what is left out keeps its default there.
        proximal: The proximal term, off by default.
    """

    name: str
    peft: LoraConfig
    training: dict[str, Any] = dataclasses.field(default_factory=dict)
    proximal: ProximalSpec = dataclasses.field(default_factory=ProximalSpec)

    def peft_config(self) -> LoraConfig:
        """A fresh copy of the adapter's config, for sequence classification."""
        config = copy.deepcopy(self.peft)
        config.task_type = TaskType.SEQ_CLS
        return config

    def training_arguments(self, output_dir: str | Path, **overrides: Any) -> TrainingArguments:
        """The arguments a user's own script would build, reporting to nobody unless told; overrides win."""
        keys = {"report_to": "none"} | self.training | {"output_dir": str(output_dir)} | overrides
        return TrainingArguments(**keys)

    @property
    def seed(self) -> int:
        """The seed of head, adapter and batch order; when not given 42, as in ``TrainingArguments``."""
        return int(self.training.get("seed", 42))

    def with_seed(self, seed: int) -> "Candidate":
        """The same candidate, run from another seed."""
        return dataclasses.replace(self, training=self.training | {"seed": seed})

    def peft_dict(self) -> dict[str, Any]:
        """The adapter as JSON: kind, rank, scale and targets, and what else differs from peft's defaults."""
        default = LoraConfig(task_type="SEQ_CLS")
        always = {"r", "lora_alpha", "target_modules"}
        names = [item.name for item in dataclasses.fields(LoraConfig) if item.name not in {"task_type", "peft_type"}]
        pairs = ((name, getattr(self.peft, name)) for name in names)
        changed = {name: value for name, value in pairs if name in always or value != getattr(default, name)}
        return {"type": "lora"} | {name: _jsonable(value) for name, value in changed.items()}

    def training_dict(self) -> dict[str, Any]:
        """The training keys that were set, as JSON; no token of the hub."""
        return {name: _jsonable(value) for name, value in self.training.items() if name != "hub_token"}

    def proximal_dict(self) -> dict[str, Any]:
        """The proximal term as JSON."""
        return self.proximal.model_dump()

    def to_json(self) -> dict[str, Any]:
        """The parts of its entry in result files that :func:`configuration` reads."""
        return {"peft": self.peft_dict(), "training": self.training_dict(), "proximal": self.proximal_dict()}


def configuration(entry: dict[str, Any]) -> dict[str, Any]:
    """What the entry of a candidate or a result is of; without a proximal section the term is off."""
    parts = {"peft": {}, "training": {}, "proximal": ProximalSpec().model_dump()}
    return {part: entry.get(part) or absent for part, absent in parts.items()}


def build_candidates(config: RunConfig, names: Sequence[str] | None = None) -> tuple[Candidate, ...]:
    """The candidates of a loaded ``run.yaml``, all or those in ``names``, in the file's order.

    Raises:
        InputError: A name is not among them.
    """
    known = [spec.name for spec in config.candidates]
    for name in names or ():
        if name not in known:
            raise InputError("candidate", f"there is no candidate {name!r}", nearest(name, known))
    return tuple(build_candidate(config, spec) for spec in config.candidates if names is None or spec.name in names)


def build_candidate(config: RunConfig, spec: CandidateSpec) -> Candidate:
    """A loaded ``run.yaml``'s sections with a candidate's keys merged onto them."""
    peft, training, proximal = config.merged(spec)
    return Candidate(spec.name, build_lora(peft), training, ProximalSpec.model_validate(proximal))


def variation(base: Candidate, candidate: Candidate) -> CandidateSpec:
    """What a candidate changes in another one, as in the ``candidates`` of a ``run.yaml`` that describes that one."""
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
