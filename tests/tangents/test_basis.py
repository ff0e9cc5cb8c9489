import pytest
import torch
from torch import nn
from torch.testing import assert_close

from foretune.tangents import Head, centring
from foretune.tangents.basis import num_directions, output_basis, task_directions
from foretune.task.task import MAX_DIRECTIONS


@pytest.mark.parametrize("c", [1, 2, 3, 20])
def test_centring_rows_are_orthonormal_and_centred(c: int) -> None:
    rows = centring(c)
    assert rows.shape == (max(1, c - 1), c)
    assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))
    assert c == 1 or float(rows.sum(1).abs().max()) < 1e-12


@pytest.mark.parametrize(("k", "m", "d"), [(1, 4, 30), (5, 40, 30), (3, 3, 4), (8, 12, 64)])
def test_the_basis_holds_the_heads_rows_exactly(k: int, m: int, d: int) -> None:
    head, task = torch.randn(6, k, d).double(), torch.randn(m, d).double()
    count = num_directions(head[:1], task, linear=False)
    basis = output_basis(head, task, count)
    assert basis.shape == (6, min(k + min(m, d), d, MAX_DIRECTIONS), d)
    assert_close(basis @ basis.mT, torch.eye(basis.shape[1]).double().expand(6, -1, -1))
    assert_close(head @ basis.mT @ basis, head)


def test_many_classes_share_the_basis_between_head_and_task() -> None:
    head, task = torch.randn(1, 19, 64).double(), torch.randn(19, 64).double()
    basis = output_basis(head, task, num_directions(head, task, linear=True))[0]
    assert len(basis) == MAX_DIRECTIONS
    for rows in (head[0], task):
        leading = torch.linalg.svd(rows, full_matrices=False)[2][:1]
        assert float((leading @ basis.T).norm()) > 0.9


def test_rows_that_add_nothing_cost_nothing() -> None:
    head = torch.randn(1, 2, 30).double()
    assert num_directions(head, head[0], linear=True) == 2
    assert num_directions(head, torch.cat([head[0], torch.randn(1, 30)]), linear=True) == 3
    dead = torch.zeros(3, 2, 30).double()  # the gradient of a bent head can vanish
    basis = output_basis(dead, head[0], 4)
    assert_close(basis @ basis.mT, torch.eye(4).double().expand(3, -1, -1))


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 0, 1], [0.5, 1.0, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
def test_directions_of_the_task_are_finite(labels: list[float]) -> None:
    classes = 1 if isinstance(labels[0], float) else 2
    head = Head(["classifier"], [nn.Linear(5, classes)], ["identity"], [0.1], sequence=False)
    rows = task_directions(head, torch.randn(4, 5), torch.tensor(labels), classes)
    assert rows.shape == (1, 5) and bool(rows.isfinite().all())


def test_directions_of_the_task_are_those_in_which_the_classes_differ() -> None:
    labels = torch.arange(60) % 3
    features = torch.zeros(60, 8)
    features[:, 0] += (labels == 0).float()
    features[:, 1] += (labels == 1).float()
    head = Head(["score"], [nn.Linear(8, 3)], ["identity"], [0.0], sequence=False)
    nn.init.zeros_(head.steps[0].get_parameter("weight"))
    rows = task_directions(head, features, labels, 3)
    share = rows[:, :2].square().sum() / rows.square().sum()
    assert rows.shape == (2, 8) and float(share) > 0.99
