"""Whether the model's outputs for a text depend on the padding of its batch, which no forecast could follow."""

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

EXAMPLES = 4  # that are run together, from the shortest to the longest
Rows = Sequence[dict[str, Any]]


def check_padding_invariant(task: Task, where: str = "model.path") -> None:
    """See that the model runs on the texts, and gives a text the same outputs however much padding its batch has.

    Tangents are taken in other batches than those of the real run, and would be tangents of other outputs. A few
    examples are run with the longest one in their batch and without it: two forward passes. Where their outputs
    differ, the other padding side is tried to see whether it would do.

    Args:
        task: Model and data.
        where: The field that messages name.

    Raises:
        InputError: The outputs depend on padding, or the model cannot be run on the texts.
    """
    rows, name = _spread(task), type(task.model).__name__
    with task.placed(), evaluating(task.model), torch.no_grad():
        with _explained(name, where):
            change = _change(task, rows)
        if not change > _tolerance(task):  # no numbers at all are another check's finding
            return
        side = task.tokenizer.padding_side
        other = {"left": "right", "right": "left"}[side]
        with _padded_on(task, other):
            would_do = _change(task, rows) <= _tolerance(task)
    found = f"the outputs of {name} for a text change by {change:.0%} with the amount of padding on the {side}"
    if would_do:
        found += ": it counts or reads positions from that side"
        fix = f"write padding_side: {other} into tokenizer_config.json of the model's folder"
    else:
        fix = "use a model that leaves out the tokens that attention_mask marks as padding"
    raise InputError(where, found, fix)


def check_runs(task: Task, where: str = "model.path") -> None:
    """Run the model on a few of the texts, in one forward pass; if that fails, the ``InputError`` says why.

    Args:
        task: Model and data.
        where: The field that messages name.
    """
    with task.placed(), evaluating(task.model), torch.no_grad(), _explained(type(task.model).__name__, where):
        _outputs(task, _spread(task))


@contextmanager
def _explained(name: str, where: str) -> Generator[None]:
    try:
        yield
    except Exception as error:
        if isinstance(error, torch.OutOfMemoryError | MemoryError):
            raise
        reason = " ".join(str(error).split())[:300].rstrip(".")
        found = f"{name} cannot be run on the texts ({type(error).__name__}: {reason})"
        fix = "give a model and a tokenizer that belong together, or set pooling: mean to leave its own head out"
        raise InputError(where, found, fix) from error


def _change(task: Task, rows: Rows) -> float:
    """By which share the outputs for all rows but the last, the longest, change when that one leaves their batch."""
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
    of_length = [numbered[length] for length in sorted(numbered)]
    chosen = torch.linspace(0, len(of_length) - 1, min(EXAMPLES, len(of_length))).long().tolist()
    return [split[i] for split, i in (of_length[k] for k in chosen)]


def _tolerance(task: Task) -> float:
    """What rounding may change, of outputs that are sums of larger numbers."""
    return max(torch.finfo(task.model.dtype).eps, torch.finfo(torch.float32).eps) ** 0.5


@contextmanager
def _padded_on(task: Task, side: str) -> Generator[None]:
    before = task.tokenizer.padding_side
    task.tokenizer.padding_side = side
    try:
        yield
    finally:
        task.tokenizer.padding_side = before
