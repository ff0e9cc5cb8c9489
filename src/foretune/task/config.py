"""``run.yaml``: one file that describes a fine-tune, read strictly."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from transformers import TrainingArguments

from foretune.errors import InputError
from foretune.task.arguments import build_lora, build_problem, check_peft, check_training
from foretune.task.grid import expanded
from foretune.task.problems import Problem, custom, from_validation, raise_problems, shown

FOLDER_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+=,-]*")


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
        fix = "write a jsonl, csv or parquet file, or {hub: glue, name: sst2, split: train}"
        if not isinstance(value, dict):
            raise custom(f"found {shown(value)}", fix)
        if ("path" in value) == ("hub" in value):
            raise custom(f"found {shown(value)}", fix)
        if "hub" in value and not value.get("split"):
            raise custom("a hub data set without a split", "add split, such as split: train")
        return value


class DataSpec(_Section):
    """The two splits and their columns; ``train_samples`` and ``eval_samples`` keep the first rows only."""

    train: TableSpec
    eval: TableSpec
    text: Annotated[str | list[str], BeforeValidator(_text_or_pair)]
    label: str
    max_length: Annotated[int, Field(ge=2)] = 128
    train_samples: Annotated[int, Field(ge=2)] | None = None
    eval_samples: Annotated[int, Field(ge=1)] | None = None

    @property
    def text_columns(self) -> tuple[str, ...]:
        """One column name, or two for sentence pairs."""
        return (self.text,) if isinstance(self.text, str) else tuple(self.text)


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
        if not FOLDER_NAME.fullmatch(self.name):
            raise custom(
                f"name {shown(self.name)} cannot name a folder",
                "use letters, digits, dots, dashes and underscores",
            )
        return self


class RunConfig(_Section):
    """A whole ``run.yaml``; once loaded, its paths are absolute and its candidates have passed the checks."""

    model: ModelSpec
    data: DataSpec
    peft: dict[str, Any] = {}
    training: dict[str, Any] = {}
    proximal: ProximalSpec = ProximalSpec()
    candidates: Annotated[list[CandidateSpec], BeforeValidator(expanded)] = []

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
    content = _read_yaml(path)
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
    return _absolute(checked, path.resolve().parent)


def to_yaml(config: RunConfig) -> str:
    """The text of a ``run.yaml`` that says the same as a loaded one."""
    content = config.model_dump(exclude_unset=True)
    content["candidates"] = [{key: value for key, value in each.items() if value} for each in content["candidates"]]
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True)


def _read_yaml(path: Path) -> dict[str, Any]:
    fix = "give a YAML file with the sections model, data, peft and training"
    try:
        content = yaml.safe_load(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError as error:
        raise InputError(str(path), "no such file", "give the path of a run.yaml") from error
    except OSError as error:
        raise InputError(str(path), f"cannot be read ({error.strerror})", "give the path of a run.yaml") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}", "not UTF-8 text", "save the file as UTF-8") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)
        raise InputError(where, f"not valid YAML ({reason})", "correct the YAML there") from error
    if not isinstance(content, dict):
        found = "the file is empty" if content is None else f"found {shown(content)} instead of a mapping"
        raise InputError(str(path), found, fix)
    return content


def _check_sections(config: RunConfig) -> tuple[RunConfig, list[Problem]]:
    """Check the base and every candidate by themselves; numbers given as text become numbers."""
    base_peft, problems = check_peft(config.peft, "peft")
    base_training, more = check_training(config.training, "training")
    problems += more
    candidates: list[CandidateSpec] = []
    for index, candidate in enumerate(config.candidates):
        field = f"candidates[{index}] ({candidate.name})"
        peft, peft_problems = check_peft(candidate.peft, f"{field}.peft")
        training, training_problems = check_training(candidate.training, f"{field}.training")
        problems += peft_problems + training_problems
        if candidate.name in {other.name for other in candidates}:
            problems.append(Problem(f"{field}.name", "used twice", "give each candidate its own name"))
        candidates.append(candidate.model_copy(update={"peft": peft, "training": training}))
    update = {"peft": base_peft, "training": base_training, "candidates": candidates}
    return config.model_copy(update=update), problems


def _check_combinations(config: RunConfig) -> list[Problem]:
    """Let peft, transformers and the proximal section judge each candidate as a whole."""
    problems: list[Problem] = []
    for index, candidate in enumerate(config.candidates):
        overrides = candidate.peft or candidate.training or candidate.proximal
        field = f"candidates[{index}] ({candidate.name})" if overrides else ""
        peft, training, proximal = config.merged(candidate)
        problems += build_problem(build_lora, peft, f"{field}.peft".lstrip("."))
        problems += build_problem(
            lambda keys: TrainingArguments(**({"output_dir": "unused", "report_to": "none"} | keys)),
            training,
            f"{field}.training".lstrip("."),
        )
        try:
            ProximalSpec.model_validate(proximal)
        except ValidationError as error:
            found = from_validation(error, ProximalSpec)
            problems += [Problem(f"{field}.proximal.{p.field}".lstrip("."), p.found, p.fix) for p in found]
    return list(dict.fromkeys(problems))


def _absolute(config: RunConfig, folder: Path) -> RunConfig:
    def table(spec: TableSpec) -> TableSpec:
        return (
            spec if spec.path is None else spec.model_copy(update={"path": str(folder / Path(spec.path).expanduser())})
        )

    model, data = config.model, config.data
    location: str | GgufFile = model.path
    if isinstance(location, GgufFile):
        location = GgufFile(gguf=str(folder / Path(location.gguf).expanduser()))
    elif location.startswith((".", "~", "/")) or (folder / location).is_dir():
        location = str(folder / Path(location).expanduser())
    return config.model_copy(
        update={
            "model": model.model_copy(update={"path": location}),
            "data": data.model_copy(update={"train": table(data.train), "eval": table(data.eval)}),
        }
    )
