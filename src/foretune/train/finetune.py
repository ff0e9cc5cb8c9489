"""Fine-tune a candidate for real, with peft and ``Trainer`` as the user's own script would call them."""

import itertools
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from foretune.errors import InputError
from foretune.linear import START_FILE, linearise
from foretune.results import changed_files, file_checksum, provenance, read_json, write_json
from foretune.task import Candidate, Task
from foretune.task.candidate import configuration
from foretune.train import checkpoints
from foretune.train.arguments import loop_arguments
from foretune.train.hub import push_adapter
from foretune.train.initialise import build_peft_model
from foretune.train.loop import run_trainer
from foretune.train.recorder import GAP_FILE, GapRecorder

REPLACED = "replaced"  # the folder for results that belong to an earlier run of the same name
Notify = Callable[[str], None]


def fine_tune(
    task: Task,
    candidate: Candidate,
    directory: Path,
    *,
    seed: int | None = None,
    linearised: bool = False,
    certify: bool = False,
    progress: Callable[[int, int], None] | None = None,
    notify: Notify | None = None,
) -> tuple[dict[str, Any], bool]:
    """Fine-tune a candidate for real.

    It writes ``train/<name>/result.json`` and the adapter into the run directory. The parameters before training are
    saved with the adapter, in ``start.safetensors``. A finished run is not repeated, and an interrupted run continues
    from its last whole checkpoint. Results and checkpoints of other settings, other data or another model are not used:
    results are moved to ``replaced/``, checkpoints are removed, and ``notify`` is told.

    Args:
        task: Model, data and loss.
        candidate: The candidate to train.
        directory: The run directory.
        seed: A seed other than the candidate's own; that run is written to ``train/<name>/seed-<seed>``.
        linearised: Train the linearised model instead, in the same way; that run is written to
            ``train/<name>-linearised``.
        certify: Record what ``certify`` needs for a bound, in ``gap.json`` in the adapter's folder.
        progress: Called with the number of steps done and of all steps.
        notify: Called with a sentence about files that are not used, or about a failure that does not end the run.

    Returns:
        The content of ``result.json``, and whether the run was finished before.

    Raises:
        InputError: A linearised run is to be certified, or to be trained with noise on its embeddings.
    """
    if linearised and certify:
        raise InputError("certify", "a linearised run is linear by construction", "certify the real run")
    if linearised:
        check_linearised(candidate, "training")
    notify = notify or (lambda _: None)
    folder = directory / "train" / (f"{candidate.name}-linearised" if linearised else candidate.name)
    if seed is not None and seed != candidate.seed:
        folder, candidate = folder / f"seed-{seed}", candidate.with_seed(seed)
    run = candidate.to_json() | {"linearised": linearised, "task": task.identity}
    finished = _finished(folder, run, certify, notify)
    if finished:
        return finished, True
    folder.mkdir(parents=True, exist_ok=True)
    saved = folder / "checkpoints"
    started = time.perf_counter()
    model = build_peft_model(task, candidate, candidate.seed)
    linear = linearise(model)  # it shares the parameters of the model, and keeps a copy from before training
    recorder = GapRecorder(linear, task.loss) if certify else None
    checkpoint = checkpoints.prepare(saved, run, notify)
    overrides = real_arguments(candidate) | {"eval_on_start": checkpoint is None}
    result, trainer = run_trainer(
        linear if linearised else model,
        candidate.training_arguments(saved, **overrides),
        task.train,
        task.eval,
        task.compute_metrics,
        collator=task.collator,
        tokenizer=task.tokenizer,
        progress=progress,
        notify=notify,
        callbacks=[recorder] if recorder else [],
        checkpoint=checkpoint,
        proximal=candidate.proximal,
    )
    adapter = folder / "adapter"
    linear.save_pretrained(str(adapter))
    if recorder:
        recorder.save(adapter)
    final = result.final
    content = provenance(candidate.seed, time.perf_counter() - started, trainer.args.device) | {
        "candidate": candidate.name,
        **run,
        "final": {name: final[name] for name in ("train_loss", "eval_loss", "eval_metric")}
        | {"metric_name": task.metric_name, "step": final["step"], "epoch": final["epoch"]},
        "curve": result.curve,
        "cost": {
            "seconds": result.train_seconds,
            "eval_seconds": result.eval_seconds,
            "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
            "peak_memory_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        },
        "files": {
            path.name: file_checksum(path) for path in [*sorted(adapter.glob("*.safetensors")), *adapter.glob(GAP_FILE)]
        },
    }
    write_json(folder / "result.json", content)
    shutil.rmtree(saved, ignore_errors=True)
    push_adapter(candidate, adapter, notify)
    return content, False


def check_linearised(candidate: Candidate, where: str) -> None:
    """Check that the linearised model can be trained as a candidate says.

    Args:
        candidate: The candidate.
        where: Name of its training section in messages.

    Raises:
        InputError: The candidate asks for noise on the embeddings.
    """
    if candidate.training.get("neftune_noise_alpha"):
        raise InputError(
            f"{where}.neftune_noise_alpha", "a linearised run cannot have noise on its embeddings", "leave it out"
        )


def real_arguments(candidate: Candidate) -> dict[str, Any]:
    """Return the arguments that a real run sets: when to evaluate, how to save checkpoints, and no push before the end.

    Args:
        candidate: The candidate with the user's own training arguments.

    Returns:
        Training arguments that override the user's.
    """
    given = candidate.training
    overrides = loop_arguments(given)
    limit = max(int(given.get("save_total_limit") or 0), checkpoints.LEAST_KEPT)
    overrides |= {"save_total_limit": limit, "push_to_hub": False, "save_only_model": False}
    return overrides | {"save_strategy": given.get("save_strategy", overrides["eval_strategy"])}


def _finished(folder: Path, run: dict[str, Any], certify: bool, notify: Notify) -> dict[str, Any] | None:
    """The result of the run if it is finished; a result that is damaged or belongs to another run is moved away.

    Raises:
        InputError: The run was trained without the record that is asked for now.
    """
    path = folder / "result.json"
    if not path.exists():
        return None
    try:
        result = read_json(path, "")
        before = configuration(result) | {key: result.get(key) for key in ("linearised", "task")}
        why = checkpoints.changes(before, run)
        damaged = damaged_files(folder / "adapter", result)
        why = f"it belongs to another run ({why})" if why else f"{', '.join(damaged)} changed since" if damaged else ""
    except InputError as error:
        why = error.found
    if why:
        place = _move_away(folder)
        notify(f"{path}: {why}; it was moved to {place}, and the run is made again")
        return None
    if certify and not (folder / "adapter" / GAP_FILE).exists():
        raise InputError(str(path), "it was trained without --certify", f"delete {folder} to train it again")
    return result


def damaged_files(adapter: Path, result: dict[str, Any]) -> list[str]:
    """List the files of an adapter that changed after its ``result.json`` was written.

    A missing ``start.safetensors`` is not listed, because the start can be drawn again. A missing ``gap.json`` is not
    listed either, because only a bound needs it.

    Args:
        adapter: The folder of the adapter.
        result: The content of ``result.json``.

    Returns:
        Names of files.
    """
    changed = changed_files(adapter, result.get("files") or {})
    return [name for name in changed if name not in (START_FILE, GAP_FILE) or (adapter / name).exists()]


def _move_away(folder: Path) -> Path:
    """Move the files of a run, without those of its other seeds, into ``replaced/`` of the run directory."""
    root = next(parent for parent in folder.parents if parent.name == "train").parent
    name = "-".join(folder.relative_to(root / "train").parts)
    place = next(path for number in itertools.count(1) if not (path := root / REPLACED / f"{name}-{number}").exists())
    place.mkdir(parents=True)
    for part in folder.iterdir():
        if not part.name.startswith("seed-"):
            shutil.move(part, place / part.name)
    return place
