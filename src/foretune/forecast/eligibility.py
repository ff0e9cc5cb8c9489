"""Check which candidates of a run file can be trained and forecast, before anything expensive starts."""

import json
import tempfile
import warnings
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from peft import get_peft_model
from transformers.training_args import OptimizerNames

from foretune.errors import InputError, left_out
from foretune.forecast.simulate import simulated_arguments
from foretune.tangents import check_forecastable, check_padding_invariant, read_adapters
from foretune.task import Candidate, Task
from foretune.task.loading import LoadedRun
from foretune.task.matching import skeleton
from foretune.train.rehearsal import rehearse

LAYERWISE = ("galore", "apollo", "lomo", "adalomo")  # optimisers that need the network's modules or its backward hooks


@dataclass(frozen=True)
class Examined:
    """A loaded run, restricted to the candidates that can be forecast.

    Attributes:
        loaded: The run; its task has only the candidates that can be forecast.
        problems: Why the others cannot be forecast, by name.
    """

    loaded: LoadedRun
    problems: dict[str, InputError]

    @property
    def left_out(self) -> list[dict[str, str]]:
        """Names and reasons of the candidates that cannot be forecast, as ``forecast.json`` lists them."""
        return left_out(self.problems)


def examine(loaded: LoadedRun, source: str | Path) -> Examined:
    """Leave out the candidates that cannot be trained or forecast, and record the reasons.

    Args:
        loaded: A loaded run file.
        source: Name of the file in messages.

    Returns:
        The run with the candidates that can be forecast, and the problems of the others.

    Raises:
        InputError: None of the candidates can be trained and forecast; this is the problem of the first one.
            Or the model's outputs depend on the padding of a batch.
    """
    task = loaded.task
    verdicts: dict[str, InputError | None] = {}  # by training section, which several candidates may share
    problems: dict[str, InputError] = {}
    for candidate in task.candidates:
        where = f"{source}: candidate {candidate.name!r}"
        shared = json.dumps([candidate.training_dict(), candidate.proximal_dict()], sort_keys=True)
        try:
            if shared not in verdicts:
                verdicts[shared] = _verdict(task, candidate, where)
            if (verdict := verdicts[shared]) is not None:
                raise InputError(f"{where}: {verdict.where.split(': ')[-1]}", verdict.found, verdict.fix)
            check_adapters(task, candidate, f"{where}: peft")
        except InputError as error:
            problems[candidate.name] = error
    problems |= _other_heads(loaded, source, problems)
    kept = [number for number, candidate in enumerate(task.candidates) if candidate.name not in problems]
    if not kept:
        first, *_ = problems.values()
        raise first
    check_padding_invariant(task, f"{source}: model.path")
    chosen = replace(
        loaded,
        task=replace(task, candidates=tuple(task.candidates[number] for number in kept)),
        adaptations=tuple(loaded.adaptations[number] for number in kept),
    )
    return Examined(chosen, problems)


def _other_heads(loaded: LoadedRun, source: str | Path, problems: Collection[str]) -> dict[str, InputError]:
    """Problems of candidates that train other modules in full than the first candidate without a problem.

    Tangents end at the modules that are trained in full, so one set of tangents serves only one choice of them.
    """
    pairs = zip(loaded.task.candidates, loaded.adaptations, strict=True)
    heads = {candidate.name: adaptation.heads for candidate, adaptation in pairs if candidate.name not in problems}
    first = next(iter(heads.values()), ())
    return {
        name: InputError(
            f"{source}: candidate {name!r}: peft.modules_to_save",
            f"it trains other modules in full ({', '.join(own)}) than the first candidate ({', '.join(first)})",
            "put it into a run file of its own",
        )
        for name, own in heads.items()
        if own != first
    }


def _verdict(task: Task, candidate: Candidate, where: str) -> InputError | None:
    """The reason why a candidate's training cannot be built or simulated; None if it can."""
    try:
        rehearse(task, candidate, where)
        check_training(candidate, f"{where}: training")
    except InputError as error:
        return error
    return None


def check_training(candidate: Candidate, where: str) -> None:
    """Check that a simulated run can follow the training section of a candidate.

    Args:
        candidate: The candidate.
        where: Name of its training section in messages.

    Raises:
        InputError: A key of the section cannot be simulated.
    """
    if candidate.training.get("neftune_noise_alpha"):
        raise InputError(
            f"{where}.neftune_noise_alpha",
            "noise on the embeddings cannot be forecast, because the tangents are taken without noise",
            "leave it out to forecast; foretune train accepts it",
        )
    optimizer = OptimizerNames(candidate.training_arguments("unused").optim).value
    if optimizer.startswith(LAYERWISE):
        raise InputError(
            f"{where}.optim",
            f"{optimizer} cannot be forecast, because it needs the network's own modules",
            "write adamw_torch to forecast; foretune train accepts it",
        )
    with tempfile.TemporaryDirectory() as scratch:
        simulated_arguments(candidate, scratch, candidate.seed)


def check_adapters(task: Task, candidate: Candidate, where: str) -> None:
    """Check that the tangents can describe a candidate's adapters, on a copy of the model without weights.

    Args:
        task: The task.
        candidate: The candidate.
        where: Name of its peft section in messages.

    Raises:
        InputError: A forecast cannot describe these adapters.
    """
    check_forecastable(candidate.peft, where)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = get_peft_model(skeleton(task.model), candidate.peft_config(), low_cpu_mem_usage=True)
    try:
        read_adapters(adapted)
    except InputError as error:
        raise InputError(where, error.found, error.fix) from error
