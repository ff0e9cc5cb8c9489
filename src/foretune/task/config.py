"""Reads ``run.yaml``, the file that describes a fine-tune, and checks all of it."""

import os
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, ValidationError, model_validator

from foretune.errors import InputError
from foretune.task.arguments import check_peft, check_training
from foretune.task.combinations import peft_problems, training_problems
from foretune.task.files import absolute_path
from foretune.task.grid import expand_grid
from foretune.task.naming import clashes, name_problem
from foretune.task.problems import Problem, custom_error, from_validation, raise_problems, shown
from foretune.task.yaml_file import read_yaml

LONGEST_TEXT = 10**7  # tokens
MOST_ROWS = 10**9
NOT_USED = {  # keys of the training section that have no effect, and why
    "output_dir": "results go to the directory given with -o",
    "resume_from_checkpoint": "an interrupted run continues from its own last checkpoint",
}


class _Section(BaseModel):
    """A section of the file; unknown keys and values of a wrong type are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, protected_namespaces=())


class GgufFile(_Section):
    """A quantised model in one GGUF file; its weights are dequantised when they are loaded."""

    gguf: str

    def __str__(self) -> str:
        return self.gguf


def _check_model_path(value: Any) -> Any:
    if isinstance(value, dict):
        if list(value) != ["gguf"] or not isinstance(value["gguf"], str):
            raise custom_error(f"found {shown(value)}", "write a hub id, a folder, or {gguf: file}")
        return GgufFile(gguf=value["gguf"])
    if not isinstance(value, str) or not value.strip():
        raise custom_error(f"found {shown(value)}", "write a hub id, a folder, or {gguf: file}")
    return value


def _check_text_columns(value: Any) -> Any:
    pair = isinstance(value, list) and len(value) == 2 and all(isinstance(name, str) for name in value)
    if not pair and not isinstance(value, str):
        raise custom_error(
            f"found {shown(value)}",
            "write a column name, or two for sentence pairs, such as [premise, hypothesis]",
        )
    return value


def _number_or_same(value: Any) -> Any:
    """Turn text into a number if it is one: YAML 1.1 reads ``1e-3`` as text."""
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


class ModelSpec(_Section):
    """The model section: the model, the kind of task, and how the model is loaded.

    ``pooling: mean`` puts a new head on the mean of the token features; ``pooling: model`` uses the model's own head.
    """

    path: Annotated[str | GgufFile, BeforeValidator(_check_model_path)]
    task: Literal["classification", "regression"] = "classification"
    pooling: Literal["model", "mean"] = "model"
    trust_remote_code: bool = False
    attn_implementation: str | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"


class TableSpec(_Section):
    """The source of a split: a file, which YAML may give as its path alone, or a data set of the hub."""

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
            raise custom_error(f"found {shown(value)}", fix)
        if bool(value.get("path")) == bool(value.get("hub")):
            raise custom_error(f"found {shown(value)}", fix)
        if value.get("hub") and not value.get("split"):
            raise custom_error("the hub data set has no split", "add one, such as split: train")
        return value


class DataSpec(_Section):
    """The data section: the two splits and their columns.

    ``train_samples`` and ``eval_samples`` are the numbers of rows that are used, from the first; None for all rows.
    """

    train: TableSpec
    eval: TableSpec
    text: Annotated[str | list[str], BeforeValidator(_check_text_columns)]
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
            fix = "name the column of the texts in text, and the column of the labels in label"
            raise custom_error(f"the column {shown(self.label)} is both text and label", fix)
        if len(set(columns)) < len(columns):
            raise custom_error(
                f"text names the same column twice, {shown(self.text)}", "write one column, or two different ones"
            )
        return self


class ProximalSpec(_Section):
    """The proximal section: a term that pulls the trained parameters back toward their start.

    ``strength`` is λ for the mean loss (docs/theory.md section 1), ``rule`` says in which steps the term acts, and
    ``scope`` whether the rule looks at all parameters together or at one tensor at a time; see ``foretune.proximal``.
    """

    strength: Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number_or_same)] = 0.0
    rule: Literal["always", "selective"] = "always"
    scope: Literal["global", "tensor"] = "global"


class CandidateSpec(_Section):
    """A named variation of the run; its keys override those of the base sections one by one."""

    name: str
    peft: dict[str, Any] = {}
    training: dict[str, Any] = {}
    proximal: dict[str, Any] = {}

    @model_validator(mode="after")
    def _usable_as_folder(self) -> "CandidateSpec":
        if problem := name_problem(self.name):
            raise custom_error(*problem)
        return self


class RunConfig(_Section):
    """A whole ``run.yaml``.

    ``load_config`` makes its paths absolute and checks its candidates.
    """

    model: ModelSpec
    data: DataSpec
    peft: dict[str, Any] = {}
    training: dict[str, Any] = {}
    proximal: ProximalSpec = ProximalSpec()
    candidates: Annotated[list[CandidateSpec], BeforeValidator(expand_grid)] = []
    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """One sentence for every key of the file that is ignored; notes are not part of the config."""
        return self._notes

    def merged(self, candidate: CandidateSpec) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        """The peft, training and proximal keys of a candidate: those of the base sections, overridden key by key."""
        base = self.proximal.model_dump(exclude_unset=True)
        return self.peft | candidate.peft, self.training | candidate.training, base | candidate.proximal


def load_config(path: str | Path) -> RunConfig:
    """Read and check a ``run.yaml``.

    Relative paths start at the file's folder. A file without candidates gets one with the name ``base``. A file that
    cannot be read or has mistakes raises one ``InputError``, which lists all problems.

    Args:
        path: The YAML file.

    Returns:
        The config.
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
    """Write a loaded config as the text of a ``run.yaml``."""
    content = config.model_dump(exclude_unset=True)
    content["candidates"] = [
        {key: value for key, value in candidate.items() if value} for candidate in content["candidates"]
    ]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    content = read_yaml(path)
    if not isinstance(content, dict):
        problem = "the file is empty" if content is None else f"found {shown(content)} instead of a mapping"
        raise InputError(str(path), problem, "give a YAML file with the sections model, data, peft and training")
    return content


def _check_sections(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """Check the sections of the base and of every candidate; numbers that are written as text become numbers."""
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
    notes += [f"training.{key} is not used: {reason}" for key, reason in NOT_USED.items() if base_training.get(key)]
    checked._notes = tuple(notes)
    return checked, problems


def _check_combinations(config: RunConfig) -> list[Problem]:
    """Check the merged keys of every candidate together, with the checks of peft and transformers."""
    problems: list[Problem] = []
    regression = config.model.task == "regression"
    for index, candidate in enumerate(config.candidates):
        peft, training, proximal = config.merged(candidate)
        prefix = f"candidates[{index}] ({candidate.name})."
        problems += peft_problems(peft, f"{prefix if candidate.peft else ''}peft")
        problems += training_problems(training, regression, f"{prefix if candidate.training else ''}training")
        try:
            ProximalSpec.model_validate(proximal)
        except ValidationError as error:
            where = f"{prefix if candidate.proximal else ''}proximal"
            problems += [Problem(f"{where}.{p.field}", p.found, p.fix) for p in from_validation(error, ProximalSpec)]
    return list(dict.fromkeys(problems))


def _absolute(config: RunConfig, source: Path) -> RunConfig:
    """Make the paths of a config absolute; relative ones start at the folder of the file ``source``."""
    folder, model, data = source.resolve().parent, config.model, config.data

    def table(spec: TableSpec, field: str) -> TableSpec:
        path = spec.path and absolute_path(spec.path, folder, f"{source}: data.{field}")
        return spec.model_copy(update={"path": path}) if path else spec

    location: str | GgufFile = model.path
    if isinstance(location, GgufFile):
        location = GgufFile(gguf=absolute_path(location.gguf, folder, f"{source}: model.path"))
    elif location.startswith((".", "~", "/")) or "\0" in location or os.path.isdir(folder / location):
        location = absolute_path(location, folder, f"{source}: model.path")
    return config.model_copy(
        update={
            "model": model.model_copy(update={"path": location}),
            "data": data.model_copy(update={"train": table(data.train, "train"), "eval": table(data.eval, "eval")}),
        }
    )
