"""The training arguments of our loop: the user's own, but for evaluation, which is foretune's."""

from typing import Any

from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

# Evaluations always take all examples and give logits and labels: none of these keys changes what is trained.
EVALUATION: dict[str, Any] = {
    "prediction_loss_only": False,
    "batch_eval_metrics": False,
    "eval_do_concat_batches": True,
    "include_for_metrics": [],
    "label_names": ["labels"],
}
METRIC = "eval_metric"  # the name of the task's metric in what evaluations return
BY_EVALUATION = ("reduce_lr_on_plateau", "greedy")  # schedules that look at evaluations


def loop_arguments(given: dict[str, Any]) -> dict[str, Any]:
    """What the loop sets, given the keys of a ``training`` section.

    It evaluates before the first step and, unless the user asked otherwise, evaluates and logs after every epoch.
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
    """What keeps a run from choosing a checkpoint by its evaluations, unless its schedule looks at them anyway."""
    if given.get("lr_scheduler_type") in BY_EVALUATION:
        return {"load_best_model_at_end": False}
    return {"load_best_model_at_end": False, "metric_for_best_model": None, "greater_is_better": None}


def depends_on_evaluations(args: TrainingArguments) -> bool:
    """Whether steps depend on evaluations, or evaluations on more than the parameters."""
    averages = OptimizerNames(args.optim).value.startswith("schedule_free")  # evaluates at other weights than it trains
    return averages or args.lr_scheduler_type in BY_EVALUATION or args.metric_for_best_model is not None


def metric_names(metric_name: str) -> tuple[str, ...]:
    """What ``metric_for_best_model`` may be for a task with this metric, without the prefix ``eval_``."""
    return "loss", metric_name, "metric"
