"""A check that the model's outputs for a text do not depend on the padding of its batch.

Tangents are collected in other batches than the real run has. If outputs depend on padding, the tangents are not those
of the real run.
"""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from foretune.errors import InputError
from foretune.tangents.head import outputs_of
from foretune.tangents.hooks import evaluating
from foretune.tangents.lengths import lengths
from foretune.task import Task
from foretune.task.problems import error_text

EXAMPLES = 4  # examples in the check, from the shortest to the longest
Rows = Sequence[dict[str, Any]]


def check_padding_invariant(task: Task, where: str = "model.path") -> None:
    """Check that the model runs on the texts, and that its outputs do not depend on the padding of the batch.

    A few examples are run in one batch, and again without the longest of them. If their outputs differ, the check is
    repeated with padding on the other side, so that the message can say whether that helps.

    Args:
        task: The model and the data.
        where: The place that messages name.

    Raises:
        InputError: The outputs depend on padding, or the model cannot be run on the texts.
    """
    rows, name = _spread(task), type(task.model).__name__
    with task.placed(), evaluating(task.model), torch.no_grad():
        with _errors_explained(name, where):
            change = _change(task, rows)
        if not change > _tolerance(task):  # also if it is NaN, which another check reports
            return
        side = task.tokenizer.padding_side
        other = {"left": "right", "right": "left"}[side]
        with _padded_on(task, other):
            other_works = _change(task, rows) <= _tolerance(task)
    problem = f"the outputs of {name} for a text change by {change:.0%} with the amount of padding on the {side}"
    if other_works:
        problem += ", because the model counts or reads positions from that side"
        fix = f"write padding_side: {other} into tokenizer_config.json in the model's folder"
    else:
        fix = "use a model that ignores the padding tokens of attention_mask"
    raise InputError(where, problem, fix)


def check_runs(task: Task, where: str = "model.path") -> None:
    """Check that the model runs on the texts, with one forward pass on a few of them; if not, raise an ``InputError``.

    Args:
        task: The model and the data.
        where: The place that messages name.
    """
    with task.placed(), evaluating(task.model), torch.no_grad(), _errors_explained(type(task.model).__name__, where):
        _outputs(task, _spread(task))


@contextmanager
def _errors_explained(name: str, where: str) -> Generator[None]:
    """Turn errors of the model, except a lack of memory, into messages for the user.

    Raises:
        InputError: The block raised an error.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        reason = error_text(error, 300)
        problem = f"{name} cannot be run on the texts ({type(error).__name__}: {reason})"
        fix = "use a model and a tokenizer that belong together, or set pooling: mean to replace the model's own head"
        raise InputError(where, problem, fix) from error


def _change(task: Task, rows: Rows) -> float:
    """The relative change of the outputs for all rows but the last when the last, longest row leaves the batch."""
    together = _outputs(task, rows)
    if len(rows) == 1:
        return 0.0
    without = _outputs(task, rows[:-1])
    return float((together[:-1] - without).norm() / without.norm())


def _outputs(task: Task, rows: Rows) -> Tensor:
    batch = {name: value.to(task.model.device) for name, value in task.collator(list(rows)).items()}
    return outputs_of(task.model, batch).double()


def _spread(task: Task) -> list[dict[str, Any]]:
    """Examples of different lengths, the longest last; one example if all have the same length."""
    numbered = {length: (split, i) for split in (task.eval, task.train) for i, length in enumerate(lengths(split))}
    by_length = [numbered[length] for length in sorted(numbered)]
    chosen = torch.linspace(0, len(by_length) - 1, min(EXAMPLES, len(by_length))).long().tolist()
    return [split[i] for split, i in (by_length[k] for k in chosen)]


def _tolerance(task: Task) -> float:
    """The relative change that rounding may cause, because outputs are sums of larger numbers."""
    return max(torch.finfo(task.model.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5


@contextmanager
def _padded_on(task: Task, side: str) -> Generator[None]:
    """Inside the block the tokenizer pads on this side."""
    before = task.tokenizer.padding_side
    task.tokenizer.padding_side = side
    try:
        yield
    finally:
        task.tokenizer.padding_side = before
