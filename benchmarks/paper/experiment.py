"""An experiment of the paper: tasks × placements × strengths × seeds of one YAML file; it can be interrupted."""

import functools
import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from models import MODELS
from paper.descent import Start, descend, prepare
from paper.measure import measure
from paper.ntks import figures
from paper.texts import build
from pydantic import BaseModel, ConfigDict

from foretune.forecast.forecast import forecast
from foretune.results import provenance, read_json, write_json
from foretune.tangents import collect
from foretune.task import Candidate, Task, load_run
from foretune.task.loading import LoadedRun
from foretune.train import fine_tune, load_adapter


class Descent(BaseModel):
    """Gradient descent: its rate is ``step / (σ_max + largest λ)``, the same for every λ of a task and seed.

    Attributes:
        steps: Number of steps.
        step: Length of a step, in the unit above.
        ridge: Strength of the ridge regression for the head; None: the one with the least leave-one-out error.
    """

    model_config = ConfigDict(extra="forbid")
    steps: int
    step: float
    ridge: float | None = None


class Experiment(BaseModel):
    """An experiment, as described by its YAML file.

    Attributes:
        title: What it is about.
        measures: ``training`` (Trainer, cross-entropy, λ in the mean convention) or ``descent`` (gradient descent on
            the summed squared error, λ in the sum convention).
        run: Sections of ``run.yaml`` that all tasks share. ``model: {package: minilm}`` and ``data: {builder: ...}``
            stand for a model and texts from packages.
        tasks: The sections that differ, by task.
        placements: Keys of ``peft``, by placement.
        strengths: The values of λ of the proximal term.
        rule: The rule of the proximal term, in ``training``.
        seeds: Seeds of the head, the adapters and the batches.
        descent: Rate and steps of gradient descent.
        kernels: Whether the kernels at initialisation are measured for every placement.
        forecasts: Whether every run of the first seed is forecast.
    """

    model_config = ConfigDict(extra="forbid")
    title: str
    measures: Literal["training", "descent"]
    run: dict[str, Any]
    tasks: dict[str, dict[str, Any]]
    placements: dict[str, dict[str, Any]]
    strengths: list[float]
    seeds: list[int]
    rule: Literal["always", "selective"] = "always"
    descent: Descent | None = None
    kernels: bool = False
    forecasts: bool = False

    @classmethod
    def read(cls, path: Path) -> "Experiment":
        """Read a YAML file."""
        return cls.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))

    def names(self, placement: str) -> dict[float, str]:
        """The name of the candidate with each strength."""
        return {strength: f"{placement}-{strength:g}" for strength in self.strengths}

    def run_file(self, task: str) -> dict[str, Any]:
        """``run.yaml`` of a task: a candidate for every placement and strength."""
        content = merged(self.run, self.tasks[task])
        content["candidates"] = [
            {"name": name, "peft": peft, "proximal": {"strength": strength, "rule": self.rule}}
            for placement, peft in self.placements.items()
            for strength, name in self.names(placement).items()
        ]
        return content


@dataclass(frozen=True)
class Cell:
    """One piece of work.

    Attributes:
        kind: ``runs``, ``kernels`` or ``forecasts``.
        keys: Its task, placement, seed and strength.
        identity: All that its result depends on. Experiments with the same identity share a cell.
        work: The function that does it.
    """

    kind: str
    keys: dict[str, Any]
    identity: dict[str, Any]
    work: Callable[[], dict[str, Any]]

    def path(self, folder: Path) -> Path:
        """The file of its result."""
        identity = json.dumps(self.identity, sort_keys=True).encode()
        return folder / f"{self.kind}-{hashlib.blake2b(identity, digest_size=8).hexdigest()}.json"


class Work:
    """The cells of an experiment in a folder; a cell that has a file is not repeated."""

    def __init__(self, name: str, experiment: Experiment, folder: Path) -> None:
        self.name, self.experiment, self.folder, self.cache = name, experiment, folder / name, folder / "cells"
        self._tasks: dict[str, Task] = {}

    def task(self, name: str) -> Task:
        """A task, loaded once."""
        if name not in self._tasks:
            self._tasks[name] = self.load(name).task
        return self._tasks[name]

    def load(self, name: str) -> LoadedRun:
        """Write ``run.yaml`` of a task, with its data, and load it."""
        folder = self.folder / name
        folder.mkdir(parents=True, exist_ok=True)
        content = self.experiment.run_file(name)
        if "package" in content["model"]:
            content["model"]["path"] = MODELS[content["model"].pop("package")]()
        if "builder" in content["data"]:
            build(content["data"].pop("builder"), folder, content["data"].get("eval_samples", 10**9))
            content["data"] |= {"train": "train.jsonl", "eval": "eval.jsonl"}
        (folder / "run.yaml").write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
        return load_run(folder / "run.yaml")

    def candidate(self, task: str, name: str) -> Candidate:
        """A candidate of a task."""
        return next(each for each in self.task(task).candidates if each.name == name)

    def cells(self, seed: int) -> Iterator[Cell]:
        """Every cell of a seed."""
        experiment = self.experiment
        for task in experiment.tasks:
            common = {"seed": seed, "run": merged(experiment.run, experiment.tasks[task])}
            if experiment.forecasts and seed == experiment.seeds[0]:
                identity = common | {"placements": experiment.placements, "strengths": experiment.strengths}
                yield Cell("forecasts", {"task": task}, identity, functools.partial(self.forecasts, task, seed))
            if experiment.kernels:
                for placement, peft in experiment.placements.items():
                    keys = {"task": task, "placement": placement, "seed": seed}
                    name = experiment.names(placement)[experiment.strengths[0]]
                    work = functools.partial(self.kernels, task, name, seed)
                    yield Cell("kernels", keys, common | {"peft": peft}, work)
            for strength in experiment.strengths:
                for placement, peft in experiment.placements.items():
                    keys = {"task": task, "placement": placement, "seed": seed, "strength": strength}
                    identity = common | {"peft": peft, "strength": strength}
                    if experiment.rule != "always":
                        identity["rule"] = experiment.rule
                    if experiment.descent is not None:
                        identity["descent"] = experiment.descent.model_dump(exclude_none=True)
                        identity["largest"] = max(experiment.strengths)
                    name = experiment.names(placement)[strength]
                    work = functools.partial(getattr(self, experiment.measures), task, name, seed, strength)
                    yield Cell("runs", keys, identity, work)

    def run(self, seed: int) -> None:
        """Do the cells of a seed that have no file yet."""
        for cell in self.cells(seed):
            path = cell.path(self.cache)
            if path.exists():
                continue
            started = time.perf_counter()
            result = cell.work()
            seconds = time.perf_counter() - started
            self.cache.mkdir(parents=True, exist_ok=True)
            write_json(path, provenance(seed, seconds) | {"result": result})
            print(f"{self.name}: {cell.kind} {' '.join(map(str, cell.keys.values()))}: {seconds:.0f} s", flush=True)

    def training(self, task: str, name: str, seed: int, strength: float) -> dict[str, Any]:
        """A real run, with how linear it was."""
        folder = self.folder / task
        candidate = self.candidate(task, name)
        result, _ = fine_tune(self.task(task), candidate, folder, seed=seed)
        inside = folder / "train" / name / ("" if seed == candidate.seed else f"seed-{seed}")
        linear = load_adapter(self.task(task), inside / "adapter")
        final = {key: result["final"][key] for key in ("eval_loss", "eval_metric")}
        return final | measure(self.task(task), linear)

    def descent(self, task: str, name: str, seed: int, strength: float) -> dict[str, Any]:
        """Gradient descent with one λ."""
        given = self.experiment.descent
        assert given is not None
        start = self.start(task, name.rpartition("-")[0], seed, given.ridge)
        rate = given.step / (start.largest + max(self.experiment.strengths))
        return descend(self.task(task), start, strength, rate, given.steps)

    @functools.lru_cache(maxsize=1)  # ruff: ignore[cached-instance-method]
    def start(self, task: str, placement: str, seed: int, ridge: float | None) -> Start:
        """The model before training and its Jacobian."""
        first = self.experiment.names(placement)[self.experiment.strengths[0]]
        return prepare(self.task(task), self.candidate(task, first), seed, ridge)

    def kernels(self, task: str, name: str, seed: int) -> dict[str, Any]:
        """Kernels at initialisation."""
        return figures(self.task(task), self.candidate(task, name), seed)

    def forecasts(self, task: str, seed: int) -> dict[str, Any]:
        """One simulated run of the seed for every candidate."""
        loaded = self.load(task)
        layers = sorted({module.name for adaptation in loaded.adaptations for module in adaptation.modules})
        tangents = collect(loaded.task, layers, directory=self.folder / task / "tangents")
        found = forecast(tangents, loaded.task, loaded.task.candidates, seeds=1)
        finals = {each.candidate.name: each.simulated[-1] for each in found}
        return {
            "runs": [
                {"placement": placement, "strength": strength, "seed": seed}
                | {key: finals[name][key] for key in ("train_loss", "eval_loss", "eval_metric")}
                for placement in self.experiment.placements
                for strength, name in self.experiment.names(placement).items()
            ]
        }

    def gather(self) -> dict[str, Any]:
        """Results so far, with their environment."""
        found: dict[str, list[dict[str, Any]]] = {"runs": [], "kernels": [], "forecasts": []}
        missing, spent = 0, 0.0
        for seed in self.experiment.seeds:
            for cell in self.cells(seed):
                path = cell.path(self.cache)
                if path.exists():
                    content = read_json(path, "delete it to do this cell again")
                    spent += content["wall_seconds"]
                    result = content["result"]
                    rows = result["runs"] if cell.kind == "forecasts" else [result]
                    found[cell.kind] += [cell.keys | row for row in rows]
                else:
                    missing += 1
        settings = json.loads(self.experiment.model_dump_json(exclude_none=True))
        facts = {"experiment": self.name, "missing": missing, "settings": settings}
        return provenance(self.experiment.seeds[0], spent) | facts | found


def merged(base: dict[str, Any], override: dict[str, Any]) -> dict[str, Any]:
    """The sections of a run, with some keys overridden."""
    return {
        key: base.get(key, {}) | override.get(key, {}) if isinstance(base.get(key, {}), dict) else override[key]
        for key in base | override
    }
