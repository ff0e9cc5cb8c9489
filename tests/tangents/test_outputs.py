"""Outputs of a model for a whole split."""

import torch
from cases import tiny_task
from torch.testing import assert_close

from foretune.tangents import all_outputs
from foretune.tangents.head import outputs_of
from foretune.tangents.hooks import evaluating


def test_outputs_are_in_the_order_of_the_rows() -> None:
    task = tiny_task("bert")
    lengths = [sum(mask) for mask in task.eval["attention_mask"]]
    assert lengths != sorted(lengths)
    model = task.model.double()
    with evaluating(model), torch.no_grad():
        single = [outputs_of(model, task.collator([row])) for row in task.eval]
    assert_close(all_outputs(model, task, task.eval), torch.cat(single), rtol=1e-10, atol=1e-10)
