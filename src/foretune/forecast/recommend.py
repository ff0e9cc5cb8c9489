"""``recommendation.json``, and configurations that are ready to run, from ``run.yaml``."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.forecast.expectation import Forecast
from foretune.forecast.forecast import Bar
from foretune.forecast.run import collected, summary
from foretune.forecast.search import Search
from foretune.results import writable_directory, write_json, write_text
from foretune.tangents import check_forecastable
from foretune.task import Candidate, load_run
from foretune.task.candidate import build_candidate, configuration, variation
from foretune.task.config import CandidateSpec, to_yaml
from foretune.task.space import around

ADAPTER, RUN = "adapter_config.json", "recommended.yaml"


def recommend_run(path: str | Path, directory: str | Path, *, sample: int | None = None, bar: Bar) -> dict[str, Any]:
    """Search for the best fine-tune around the one that a ``run.yaml`` describes; nothing is trained.

    Writes ``recommendation.json``; the recommended ``adapter_config.json`` for peft; ``recommended.yaml``, the same
    file with what is recommended as its candidates; and ``forecast.json`` of all that was looked at, for ``report``
    and ``compare``. Anything wrong in the file is an ``InputError``.

    Args:
        path: The YAML file; its candidates compete.
        directory: Where results go; tangents are kept there.
        sample: Training examples that stand for all of them; by default each for itself.
        bar: Makes a progress bar for a label.
    """
    started = time.perf_counter()
    directory = writable_directory(directory)
    loaded = load_run(path)
    task, config = loaded.task, loaded.config
    bare = build_candidate(config, CandidateSpec(name="base"))
    same = [each for each in task.candidates if configuration(each.to_json()) == configuration(bare.to_json())]
    others = [each for each in task.candidates if each not in same]
    taken = any(each.name == bare.name for each in others)
    base = same[0] if same else replace(bare, name="base-of-file") if taken else bare
    for each in (base, *others):
        check_forecastable(each.peft, f"{path}: candidate {each.name!r}: peft")
    space = around(task.model, base, others, f"{path}: peft")
    starts = collected(loaded, path, space.layers, directory, sample, bar)
    with task.placed():
        found = Search(starts, task, space, bar).run()
    result = summary(loaded, starts, found.searched, time.perf_counter() - started)
    roles = {"recommended": found.recommended, "base": found.base, "lighter": found.lighter}
    chosen = {role: each and each.to_json() for role, each in roles.items()}
    names = {role: each and each.candidate.name for role, each in roles.items()}
    write_json(directory / "forecast.json", result | {"roles": names})
    write_text(directory / ADAPTER, adapter_config(found.recommended.candidate, str(config.model.path)))
    distinct = {each.candidate.name: variation(base, each.candidate) for each in roles.values() if each}
    write_text(directory / RUN, to_yaml(config.model_copy(update={"candidates": list(distinct.values())})))
    recommendation = {key: value for key, value in result.items() if key != "candidates"} | chosen
    recommendation["searched"] = [row(each) for each in found.searched]
    write_json(directory / "recommendation.json", recommendation)
    return recommendation


def row(found: Forecast) -> dict[str, Any]:
    """What is said in short of each fine-tune that was looked at."""
    last, parameters = found.curve[-1], found.trainable_parameters
    said = {key: last[key] for key in ("eval_metric", "eval_metric_std", "eval_loss")}
    return {
        "name": found.candidate.name,
        **said,
        "trainable_parameters": parameters,
        "may_collapse": found.may_collapse,
    }


def adapter_config(candidate: Candidate, model: str) -> str:
    """The text of a candidate's ``adapter_config.json``, as peft writes it."""
    config = candidate.peft_config()
    config.base_model_name_or_path = model
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / ADAPTER).read_text(encoding="utf-8")
