import pytest
import torch
from torch import nn
from torch.testing import assert_close

from foretune.tangents import Head, centring
from foretune.tangents.basis import RATE, STEPS, limited, num_directions, output_basis, task_directions
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
    assert basis.shape == (6, min(k + min(m, d), d), d)
    assert_close(basis @ basis.mT, torch.eye(basis.shape[1]).double().expand(6, -1, -1))
    assert_close(head @ basis.mT @ basis, head)


@pytest.mark.parametrize("examples", [1, 3])
def test_of_many_directions_those_are_taken_that_hold_most_of_the_gradients(examples: int) -> None:
    head, task = torch.randn(examples, 19, 64).double(), torch.randn(19, 64).double()
    basis = output_basis(head, task, num_directions(head[:1], task, linear=True))
    pushed = (torch.randn(200, 10).double() @ basis[:, :10]).flatten(0, 1)  # along ten of the 38
    noise = 0.01 * torch.randn(200, 64).double()
    kept, beyond = limited(basis, pushed.T @ pushed + noise.T @ noise)
    assert kept.shape[1] == MAX_DIRECTIONS and beyond.shape[1] == 38 - MAX_DIRECTIONS
    both = torch.cat([kept, beyond], 1)
    assert_close(both @ both.mT, torch.eye(38).double().expand(examples, -1, -1))
    assert_close(both.mT @ both, basis.mT @ basis)
    if examples == 1:  # else all are pushed along what only one of them has
        assert_close(basis[:, :10] @ kept.mT @ kept, basis[:, :10], atol=1e-2, rtol=0)


def test_few_directions_are_all_taken() -> None:
    basis = output_basis(torch.randn(2, 3, 30), torch.randn(3, 30), 6)
    kept, beyond = limited(basis, torch.eye(30).double())
    assert kept is basis and beyond.shape == (2, 0, 30)


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
    rows, pushes = task_directions(head, torch.randn(4, 5), torch.tensor(labels), classes)
    assert rows.shape == (1, 5) and bool(rows.isfinite().all())
    assert pushes.shape == (5, 5) and bool(pushes.isfinite().all())


def test_directions_of_the_task_are_those_in_which_the_classes_differ() -> None:
    labels = torch.arange(60) % 3
    features = torch.zeros(60, 8)
    features[:, 0] += (labels == 0).float()
    features[:, 1] += (labels == 1).float()
    head = Head(["score"], [nn.Linear(8, 3)], ["identity"], [0.0], sequence=False)
    nn.init.zeros_(head.steps[0].get_parameter("weight"))
    rows, pushes = task_directions(head, features, labels, 3)
    share = rows[:, :2].square().sum() / rows.square().sum()
    assert rows.shape == (2, 8) and float(share) > 0.99
    assert_close(pushes[:2, :2].diagonal().sum(), pushes.diagonal().sum())


def test_pushes_are_the_squared_gradients_of_the_loss_while_the_head_learns() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(6, 4).double(), torch.arange(6) % 3
    head = Head(["score"], [nn.Linear(4, 3).double()], ["identity"], [0.0], sequence=False)
    expected = torch.zeros(4, 4).double()
    weight, bias = (value.detach().clone().requires_grad_() for value in head.steps[0].parameters())
    optimiser = torch.optim.Adam([weight, bias], RATE)
    for step in range(STEPS + 1):
        outputs = features @ weight.T + bias
        if step % (STEPS // 8) == 0:
            gradient = (outputs.softmax(1) - nn.functional.one_hot(labels)) @ weight / 6
            expected += (gradient.T @ gradient).detach()
        optimiser.zero_grad()
        nn.functional.cross_entropy(outputs, labels).backward()
        optimiser.step()
    assert_close(task_directions(head, features, labels, 3).pushes, expected, rtol=1e-10, atol=1e-12)
