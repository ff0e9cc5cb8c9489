"""``run.yaml``: one file that describes a fine-tune, read strictly."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from foretune.errors import InputError
from foretune.task.arguments import check_peft, check_training
from foretune.task.combinations import peft_problems, training_problems
from foretune.task.files import located
from foretune.task.grid import expanded
from foretune.task.naming import clashes, unusable
from foretune.task.problems import Problem, custom, from_validation, raise_problems, shown
from foretune.task.yaml_file import read_yaml

LONGEST_TEXT = 10**7  # tokens
MOST_ROWS = 10**9


NOT_USED = {  # keys of the training section that foretune answers itself
    "output_dir": "results go to the directory given with -o",
    "resume_from_checkpoint": "an interrupted run goes on from its own last checkpoint",
}


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class GgufFile(_Section):
    """A quantised model in one file; its weights are loaded dequantised."""

    gguf: str

    def __str__(self) -> str:
        return self.gguf


def _gguf_or_text(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) != ["gguf"] or not isinstance(value["gguf"], str):
            raise custom(f"found {shown(value)}", "write a hub id, a folder, or {gguf: file}")
        return GgufFile(gguf=value["gguf"])
    if not isinstance(value, str) or not value.strip():
        raise custom(f"found {shown(value)}", "write a hub id, a folder, or {gguf: file}")
    return value


def _text_or_pair(value: Any) -> Any:
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)
    if not pair and not isinstance(value, str):
        raise custom(
            f"found {shown(value)}",
            "write a column name, or two for sentence pairs, such as [premise, hypothesis]",
        )
    return value


def _numeric(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


class ModelSpec(_Section):
    """Which model is fine-tuned, and for what."""

    path: Annotated[str | GgufFile, BeforeValidator(_gguf_or_text)]
    task: Literal["classification", "regression"] = "classification"
    pooling: Literal["model", "mean"] = "model"
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class TableSpec(_Section):
    """Where the rows of a split are: a file (in YAML, its path alone), or a data set of the hub."""

    path: str | None = None
    hub: str | None = None
    name: str | None = None
    split: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _file_or_hub(cls, value: Any) -> Any:
        if isinstance(value, str) and value.strip():
            return {"path": value}
        fix = "write a jsonl, json, csv, tsv or parquet file, or {hub: glue, name: sst2, split: train}"
        if not isinstance(value, dict):
            raise custom(f"found {shown(value)}", fix)
        if bool(value.get("path")) == bool(value.get("hub")):
            raise custom(f"found {shown(value)}", fix)
        if value.get("hub") and not value.get("split"):
            raise custom("a hub data set without a split", "add split, such as split: train")
        return value


class DataSpec(_Section):
    """The two splits and their columns; ``train_samples`` and ``eval_samples`` keep the first rows only."""

    train: TableSpec
    eval: TableSpec
    text: Annotated[str | list[str], BeforeValidator(_text_or_pair)]
    label: str
    max_length: Annotated[int, Field(ge=2, le=LONGEST_TEXT)] = 128
    train_samples: Annotated[int, Field(ge=2, le=MOST_ROWS)] | None = None
    eval_samples: Annotated[int, Field(ge=1, le=MOST_ROWS)] | None = None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """One column name, or two for sentence pairs."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)

    @model_validator(mode="after")
    def _columns_differ(self) -> "DataSpec":
        columns = [name.strip() for name in self.text_columns]
        if self.label.strip() in columns:
            fix = "write the column of the texts in text, and that of the labels in label"
            raise custom(f"the column {shown(self.label)} is both text and label", fix)
        if len(set(columns)) < len(columns):
            raise custom(f"the text {shown(self.text)} is one column twice", "write one column, or two different ones")
        return self


class ProximalSpec(_Section):
    """The proximal term: its strength (relative to the mean loss), and when it acts (``foretune.proximal``)."""

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_numeric)] = 0.0
    rule: Literal["always", "selective"] = "always"
    scope: Literal["global", "tensor"] = "global"


class CandidateSpec(_Section):
    """A named variation: its keys are merged one by one onto the base sections."""

    name: str
    peft: dict[str, Any] = {}
    training: dict[str, Any] = {}
    proximal: dict[str, Any] = {}

    @model_validator(mode="after")
    def _usable_as_folder(self) -> "CandidateSpec":
        if problem := unusable(self.name):
            raise custom(*problem)
        return self


class RunConfig(_Section):
    """A whole ``run.yaml``; once loaded, its paths are absolute and its candidates have passed the checks."""

    model: ModelSpec
    data: DataSpec
    peft: dict[str, Any] = {}
    training: dict[str, Any] = {}
    proximal: ProximalSpec = ProximalSpec()
    candidates: Annotated[list[CandidateSpec], BeforeValidator(expanded)] = []
    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """What was left out of the file, one sentence each; no part of what the config says."""
        return self._notes

    def merged(self, candidate: CandidateSpec) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The peft, training and proximal keys of a candidate: the base's, overridden key by key."""
        base = self.proximal.model_dump(exclude_unset=True)
        return self.peft | candidate.peft, self.training | candidate.training, base | candidate.proximal


def load_config(path: str | Path) -> RunConfig:
    """Read, check and complete a ``run.yaml``.

    Relative paths start at the file's folder; a file without candidates gets one called ``base``. If the file
    cannot be read or anything in it is wrong, one ``InputError`` lists all problems.
    """
    path = Path(path)
    content = _read(path)
    try:
        config = RunConfig.model_validate(content)
    except ValidationError as error:
        raise_problems(str(path), from_validation(error, RunConfig))
    candidates = config.candidates or [CandidateSpec(name="base")]
    config = config.model_copy(update={"candidates": candidates})
    checked, problems = _check_sections(config)
    if not problems:
        problems = _check_combinations(checked)
    if problems:
        raise_problems(str(path), problems)
    return _absolute(checked, path)


def to_yaml(config: RunConfig) -> str:
    """The text of a ``run.yaml`` that says the same as a loaded one."""
    content = config.model_dump(exclude_unset=True)
    content["candidates"] = [{key: value for key, value in each.items() if value} for each in content["candidates"]]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        found = "the file is empty" if content is None else f"found {shown(content)} instead of a mapping"
        raise InputError(str(path), found, "give a YAML file with the sections model, data, peft and training")
    return content


def _check_sections(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """Check the base and every candidate by themselves; numbers given as text become numbers."""
    base_peft, problems, notes = check_peft(config.peft, "peft")
    base_training, more = check_training(config.training, "training")
    problems += more
    candidates: list[CandidateSpec] = []
    for index, candidate in enumerate(config.candidates):
        field = f"candidates[{index}] ({candidate.name})"
        peft, peft_problems, peft_notes = check_peft(candidate.peft, f"{field}.peft")
        training, training_problems = check_training(candidate.training, f"{field}.training")
        problems += peft_problems + training_problems
        notes += peft_notes
        candidates.append(candidate.model_copy(update={"peft": peft, "training": training}))
    problems += clashes([candidate.name for candidate in candidates])
    checked = config.model_copy(update={"peft": base_peft, "training": base_training, "candidates": candidates})
    notes += [f"training.{key} is not used: {why}" for key, why in NOT_USED.items() if base_training.get(key)]
    checked._notes = tuple(notes)
    return checked, problems


def _check_combinations(config: RunConfig) -> list[Problem]:
    """Let peft, transformers and the proximal section judge each candidate as a whole."""
    problems: list[Problem] = []
    regression = config.model.task == "regression"
    for index, candidate in enumerate(config.candidates):
        peft, training, proximal = config.merged(candidate)
        own = f"candidates[{index}] ({candidate.name})."
        problems += peft_problems(peft, f"{own if candidate.peft else ''}peft")
        problems += training_problems(training, regression, f"{own if candidate.training else ''}training")
        try:
            ProximalSpec.model_validate(proximal)
        except ValidationError as error:
            where = f"{own if candidate.proximal else ''}proximal"
            problems += [Problem(f"{where}.{p.field}", p.found, p.fix) for p in from_validation(error, ProximalSpec)]
    return list(dict.fromkeys(problems))


def _absolute(config: RunConfig, source: Path) -> RunConfig:
    """The config with absolute paths; those in ``source`` start at its folder."""
    folder, model, data = source.resolve().parent, config.model, config.data

    def table(spec: TableSpec, field: str) -> TableSpec:
        path = spec.path and located(spec.path, folder, f"{source}: data.{field}")
        return spec.model_copy(update={"path": path}) if path else spec

    location: str | GgufFile = model.path
    if isinstance(location, GgufFile):
        location = GgufFile(gguf=located(location.gguf, folder, f"{source}: model.path"))
    elif location.startswith((".", "~", "/")) or "\0" in location or os.path.isdir(folder / location):
        location = located(location, folder, f"{source}: model.path")
    return config.model_copy(
        update={
            "model": model.model_copy(update={"path": location}),
            "data": data.model_copy(update={"train": table(data.train, "train"), "eval": table(data.eval, "eval")}),
        }
    )
