"""The training arguments of the loop: the user's own, except for evaluation, which foretune decides."""

from typing import Any

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

# Evaluations always use all examples and return logits and labels. None of these keys changes the training.
EVALUATION: dict[str, Any] = {
    "prediction_loss_only": False,
    "batch_eval_metrics": False,
    "eval_do_concat_batches": True,
    "include_for_metrics": [],
    "label_names": ["labels"],
}
METRIC = "eval_metric"  # name of the task's metric in the result of an evaluation
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")  # schedules that depend on evaluations


def loop_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments that the loop sets, given the keys of a ``training`` section.

    The loop evaluates before the first step. It evaluates and logs after every epoch, unless the user asks otherwise.

    Args:
        given: The keys of the ``training`` section.

    Returns:
        Training arguments that override the user's.
    """
    chosen: dict[str, Any] = {name: given[name] for name in ("eval_strategy", "logging_strategy") if name in given}
    by = given.get("metric_for_best_model")
    if by is not None and not str(by).endswith("loss"):
        chosen["metric_for_best_model"] = METRIC
    return (
        EVALUATION
        | {"eval_strategy": "epoch", "logging_strategy": "epoch", "eval_on_start": True, "disable_tqdm": True}
        | chosen
    )


def without_choice(given: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments with which a run does not choose a checkpoint by its evaluations.

    If the schedule depends on evaluations, it keeps its metric.

    Args:
        given: The keys of a ``training`` section.

    Returns:
        Training arguments that override the user's.
    """
    if given.get("lr_scheduler_type") in BY_EVALUATION:
        return {"load_best_model_at_end": False}
    return {"load_best_model_at_end": False, "metric_for_best_model": None, "greater_is_better": None}


def depends_on_evaluations(args: TrainingArguments) -> bool:
    """Whether steps depend on evaluations, or evaluations on more than the parameters."""
    averages = OptimizerNames(args.optim).value.startswith("schedule_free")  # trains and evaluates different weights
    return averages or args.lr_scheduler_type in BY_EVALUATION or args.metric_for_best_model is not None


def metric_names(metric_name: str) -> tuple[str, ...]:
    """Return the valid values of ``metric_for_best_model`` for a task with this metric, without ``eval_``."""
    return "loss", metric_name, "metric"
