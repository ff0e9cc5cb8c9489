"""Write ``recommendation.json`` and ready-to-run configurations for a ``run.yaml``."""

import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from foretune.forecast.eligibility import Examined, examine
from foretune.forecast.expectation import Forecast
from foretune.forecast.forecast import Bar
from foretune.forecast.run import Notify, collected, summary
from foretune.forecast.search import Search
from foretune.results import write_json, write_text
from foretune.run_directory import run_directory
from foretune.task import Candidate, load_run
from foretune.task.candidate import build_candidate, configuration, variation
from foretune.task.config import CandidateSpec, to_yaml
from foretune.task.loading import LoadedRun
from foretune.task.matching import adaptation
from foretune.task.space import around

ADAPTER, RUN = "adapter_config.json", "recommended.yaml"


def recommend_run(
    path: str | Path,
    directory: str | Path,
    *,
    sample: int | None = None,
    bar: Bar,
    notify: Notify | None = None,
) -> dict[str, Any]:
    """Search for the best fine-tune around the one that a ``run.yaml`` describes; nothing is trained.

    It writes four files: ``recommendation.json``; the recommended ``adapter_config.json`` for peft;
    ``recommended.yaml``, which is the run file with the recommendations as its candidates; and ``forecast.json`` with
    every forecast of the search, for ``report`` and ``compare``. A mistake in the file raises an ``InputError``.

    Args:
        path: The YAML file; its candidates compete with the search.
        directory: The run directory for results and tangents.
        sample: Number of training examples that stand for all of them; by default all are used.
        bar: Makes a progress bar for a label.
        notify: Called with a sentence about earlier results that are not used.

    Returns:
        The content of ``recommendation.json``.
    """
    started = time.perf_counter()
    with run_directory(directory) as directory:
        loaded = load_run(path)
        examined, config = _competitors(loaded, path), loaded.config
        task = examined.loaded.task
        base, *others = task.candidates
        space = around(task.model, base, others, f"{path}: peft")
        starts = collected(examined.loaded, space.layers, directory, sample, bar, notify)
        with task.placed():
            search = Search(starts, task, space, bar).run()
        content = summary(examined, starts, search.searched, time.perf_counter() - started)
        roles = {"recommended": search.recommended, "base": search.base, "lighter": search.lighter}
        chosen = {role: forecast and forecast.to_json() for role, forecast in roles.items()}
        names = {role: forecast and forecast.candidate.name for role, forecast in roles.items()}
        write_json(directory / "forecast.json", content | {"roles": names})
        write_text(directory / ADAPTER, adapter_config(search.recommended.candidate, str(config.model.path)))
        distinct = {result.candidate.name: variation(base, result.candidate) for result in roles.values() if result}
        write_text(directory / RUN, to_yaml(config.model_copy(update={"candidates": list(distinct.values())})))
        recommendation = {key: value for key, value in content.items() if key != "candidates"} | chosen
        recommendation["searched"] = [row(forecast) for forecast in search.searched]
        write_json(directory / "recommendation.json", recommendation)
    return recommendation


def _competitors(loaded: LoadedRun, path: str | Path) -> Examined:
    """The fine-tune that the file itself describes, followed by the candidates of the file that can be forecast.

    If the fine-tune that the file itself describes cannot be forecast, that raises an ``InputError``.
    """
    task = loaded.task
    bare = build_candidate(loaded.config, CandidateSpec(name="base"))
    adapted = dict(zip((candidate.name for candidate in task.candidates), loaded.adaptations, strict=True))
    same = [one for one in task.candidates if configuration(one.to_json()) == configuration(bare.to_json())]
    others = [candidate for candidate in task.candidates if candidate not in same]
    base = same[0] if same else replace(bare, name="base-of-file") if bare.name in adapted else bare
    if not same:
        adapted[base.name] = adaptation(task.model, base, f"{path}: peft")
    competitors = (base, *others)
    whole = replace(task, candidates=competitors)
    adaptations = tuple(adapted[candidate.name] for candidate in competitors)
    examined = examine(replace(loaded, task=whole, adaptations=adaptations), path)
    if base.name in examined.problems:
        raise examined.problems[base.name]
    return examined


def row(result: Forecast) -> dict[str, Any]:
    """Return the short entry of a forecast in the list of everything that the search tried."""
    final = result.final
    return {
        "name": result.candidate.name,
        **{key: final[key] for key in ("eval_metric", "eval_metric_std", "eval_loss")},
        "trainable_parameters": result.trainable_parameters,
        "may_collapse": result.may_collapse,
    }


def adapter_config(candidate: Candidate, model: str) -> str:
    """Return the text of a candidate's ``adapter_config.json``, as peft writes it."""
    config = candidate.peft_config()
    config.base_model_name_or_path = model
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        return (Path(folder) / ADAPTER).read_text(encoding="utf-8")
