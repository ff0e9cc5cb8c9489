"""Build a run on a model without weights, to find early what ``Trainer`` would refuse later."""

import importlib.util
import tempfile
import warnings
from collections.abc import Generator
from contextlib import contextmanager

import torch
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments

from foretune.errors import InputError
from foretune.task import Candidate, Task
from foretune.task.matching import skeleton
from foretune.task.model import quiet
from foretune.task.problems import error_text, nearest
from foretune.train.arguments import metric_names
from foretune.train.finetune import real_arguments
from foretune.train.hub import check_hub
from foretune.train.initialise import check_initialisation
from foretune.train.loop import LoopTrainer
from foretune.train.trackers import check_trackers

PLAIN = "adamw_torch"  # an optimiser that needs no further package


class _Rehearsal(LoopTrainer):
    """A trainer of a model without weights, which it does not move to a device."""

    def _move_model_to_device(self, model: nn.Module, device: torch.device) -> None:
        pass


def rehearse(task: Task, candidate: Candidate, where: str) -> None:
    """Build ``Trainer``, optimiser, schedule, trackers and batches of a candidate on its model without weights.

    If something cannot be built, that raises an ``InputError`` with the key, the reason, and what to write.

    Args:
        task: Model, data and loss.
        candidate: The candidate that would be trained.
        where: Name of the candidate in messages, such as ``run.yaml: candidate 'base'``.
    """
    training = f"{where}: training"
    check_initialisation(candidate, f"{where}: peft")
    _check_choice(task, candidate, training)
    check_hub(candidate, training)
    _check_kernels(candidate, training)
    config = candidate.peft_config()
    config.init_lora_weights = True  # other initialisations need weights or data, but give the same shapes
    with (
        torch.random.fork_rng(devices=[]),
        tempfile.TemporaryDirectory() as scratch,
        warnings.catch_warnings(),
        quiet(),
    ):
        warnings.simplefilter("ignore")
        model = get_peft_model(skeleton(task.model), config, low_cpu_mem_usage=True)
        with _refused(training, "change or remove the keys it names"):
            args = candidate.training_arguments(scratch, **real_arguments(candidate))
            _check_batches(task, args, training)
            check_trackers(args, training)
            trainer = _Rehearsal(
                model=model,
                args=args,
                train_dataset=task.train,
                eval_dataset=task.eval,
                compute_metrics=task.compute_metrics,
                data_collator=task.collator,
                processing_class=task.tokenizer,
            )
            trainer.proximal = candidate.proximal
            steps = trainer.set_initial_training_values(args, trainer.get_train_dataloader())[-1]
        fix = f"install what it names, or write {PLAIN}, which needs no other package"
        with _refused(f"{training}.optim", fix):
            trainer.create_optimizer()
            _take_a_step(args, model)
        with _refused(f"{training}.lr_scheduler_type", "write lr_scheduler_kwargs that this schedule accepts"):
            trainer.create_scheduler(steps)


@contextmanager
def _refused(where: str, fix: str) -> Generator[None]:
    """Turn any error of the libraries inside the block into an ``InputError``.

    Raises:
        InputError: Something was raised inside the block.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # the errors of the libraries have many types
        reason = error_text(error, 300)
        raise InputError(where, f"the run cannot be built ({reason})", fix) from error


def _check_choice(task: Task, candidate: Candidate, where: str) -> None:
    """Check ``metric_for_best_model``.

    Raises:
        InputError: The evaluations of this task do not measure it.
    """
    metric = candidate.training.get("metric_for_best_model")
    names = metric_names(task.metric_name)
    if metric is not None and str(metric).removeprefix("eval_") not in names:
        raise InputError(
            f"{where}.metric_for_best_model", f"{metric!r} is not measured here", nearest(str(metric), names)
        )


def _check_kernels(candidate: Candidate, where: str) -> None:
    """Check that the package for ``use_liger_kernel`` is installed; ``Trainer`` itself checks only when it starts.

    Raises:
        InputError: The package is needed and not installed.
    """
    if candidate.training.get("use_liger_kernel") and importlib.util.find_spec("liger_kernel") is None:
        raise InputError(
            f"{where}.use_liger_kernel", "liger-kernel is not installed", "install liger-kernel, or leave it out"
        )


def _check_batches(task: Task, args: TrainingArguments, where: str) -> None:
    """Check that ``dataloader_drop_last`` leaves at least one whole batch.

    Raises:
        InputError: There is no whole batch.
    """
    if args.dataloader_drop_last and len(task.train) < args.train_batch_size:
        raise InputError(
            f"{where}.dataloader_drop_last",
            f"no batch is left: a batch has {args.train_batch_size} examples, and there are {len(task.train)} to train",
            "leave it out, or write a smaller per_device_train_batch_size",
        )


def _take_a_step(args: TrainingArguments, model: nn.Module) -> None:
    """Take a step of the optimiser on a small parameter, to check that it runs on this device."""
    kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)  # type: ignore[arg-type]
    if not isinstance(kind, type) or not issubclass(kind, torch.optim.Optimizer):
        return
    if {"model", "optimizer_dict"} & set(options):  # it works only with this model's own parameters
        return
    groups = [{**group, "params": [_small_parameter(args)]} for group in options.pop("params", [{}])]
    optimizer = kind(groups, **options)
    getattr(optimizer, "train", lambda: None)()  # schedule-free optimisers must be told that training begins
    optimizer.step()


def _small_parameter(args: TrainingArguments) -> nn.Parameter:
    """A parameter with a gradient, on the device of the run."""
    parameter = nn.Parameter(torch.ones(4, 4, device=args.device))
    parameter.grad = torch.ones_like(parameter)
    return parameter
