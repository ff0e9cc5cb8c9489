"""The output basis: the directions of the features along which tangents are taken."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from foretune.tangents import Head, centring
from foretune.tangents.basis import RATE, STEPS, limited_basis, num_directions, output_basis, task_directions
from foretune.task.task import OWN_DIRECTIONS


@pytest.mark.parametrize("c", [1, 2, 3, 20])
def test_centring_rows_are_orthonormal_and_centred(c: int) -> None:
    rows = centring(c)
    assert rows.shape == (max(1, c - 1), c)
    assert_close(rows @ rows.T, torch.eye(len(rows), dtype=torch.float64))
    assert c == 1 or float(rows.sum(1).abs().max()) < 1e-12


@pytest.mark.parametrize(("k", "m", "d"), [(1, 4, 30), (5, 40, 30), (3, 3, 4), (8, 12, 64)])
def test_the_basis_spans_the_rows_of_the_head(k: int, m: int, d: int) -> None:
    head, task = torch.randn(6, k, d).double(), torch.randn(m, d).double()
    count = num_directions(head[:1], task, linear=False)
    basis = output_basis(head, task, count)
    assert basis.shape == (6, min(k + min(m, d), d), d)
    assert_close(basis @ basis.mT, torch.eye(basis.shape[1]).double().expand(6, -1, -1))
    assert_close(head @ basis.mT @ basis, head)


def affine_head(weight: torch.Tensor) -> Head:
    """A linear head with this weight and a bias of zero."""
    layer = nn.Linear(weight.shape[1], weight.shape[0]).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
        nn.init.zeros_(layer.bias)
    return Head(["score"], [layer], ["identity"], [0.0], sequence=False)


def two_layer_head(first: torch.Tensor, second: torch.Tensor) -> Head:
    """A head of two linear layers with tanh between them."""
    layers = [affine_head(weight).steps[0] for weight in (first, second)]
    return Head(["dense", "score"], layers, ["identity", "tanh"], [0.0, 0.0], sequence=False)


@pytest.mark.parametrize("linear", [True, False])
def test_a_limited_basis_has_the_directions_along_which_the_loss_curves_most(linear: bool) -> None:
    torch.manual_seed(0)
    heads = [
        affine_head(torch.randn(12, 30)) if linear else two_layer_head(torch.randn(30, 30) / 5, torch.randn(12, 30))
        for _ in range(2)
    ]
    basis = torch.linalg.qr(torch.randn(1 if linear else 3, 30, 22).double()).Q.mT
    features = torch.randn(3, 30).double()
    own = limited_basis(basis, features, heads)
    assert own.shape == (3, OWN_DIRECTIONS, 30)
    for i, example in enumerate(features):
        rows = basis[0 if linear else i]
        curvature = torch.zeros(22, 22).double()
        for head in heads:
            jacobian = torch.autograd.functional.jacobian(lambda h, head=head: head(h[None])[0], example) @ rows.T
            p = head(example[None])[0].softmax(0).detach()
            curvature += jacobian.T @ (p.diag() - p[:, None] * p) @ jacobian
        leading = torch.linalg.eigh(curvature)[1][:, -OWN_DIRECTIONS:]
        assert_close(own[i].T @ own[i], rows.T @ leading @ leading.T @ rows, rtol=1e-9, atol=1e-9)


def test_the_limited_basis_of_an_example_does_not_depend_on_other_examples() -> None:
    torch.manual_seed(0)
    basis, features = torch.linalg.qr(torch.randn(1, 30, 20).double()).Q.mT, torch.randn(4, 30).double()
    head = affine_head(torch.randn(11, 30))
    together, alone = limited_basis(basis, features, [head]), limited_basis(basis, features[2:3], [head])
    assert_close(together[2].T @ together[2], alone[0].T @ alone[0])


def test_a_basis_with_few_directions_is_not_limited() -> None:
    basis = output_basis(torch.randn(2, 3, 30), torch.randn(3, 30), 6)
    assert limited_basis(basis, torch.randn(2, 30), [affine_head(torch.randn(3, 30))]) is basis


def test_dependent_rows_add_no_directions() -> None:
    head = torch.randn(1, 2, 30).double()
    assert num_directions(head, head[0], linear=True) == 2
    assert num_directions(head, torch.cat([head[0], torch.randn(1, 30)]), linear=True) == 3
    dead = torch.zeros(3, 2, 30).double()  # the gradients of a nonlinear head can vanish
    basis = output_basis(dead, head[0], 4)
    assert_close(basis @ basis.mT, torch.eye(4).double().expand(3, -1, -1))


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 0, 1], [0.5, 1.0, 2.0, -1.0], [1.0, 1.0, 1.0, 1.0]])
def test_directions_of_the_task_are_finite(labels: list[float]) -> None:
    classes = 1 if isinstance(labels[0], float) else 2
    head = Head(["classifier"], [nn.Linear(5, classes)], ["identity"], [0.1], sequence=False)
    rows, heads = task_directions(head, torch.randn(4, 5), torch.tensor(labels), classes)
    assert rows.shape == (1, 5) and bool(rows.isfinite().all())
    assert len(heads) == 9 and all(bool(value.isfinite().all()) for copy in heads for value in copy.parameters())


def test_directions_of_the_task_separate_the_classes() -> None:
    labels = torch.arange(60) % 3
    features = torch.zeros(60, 8)
    features[:, 0] += (labels == 0).float()
    features[:, 1] += (labels == 1).float()
    head = Head(["score"], [nn.Linear(8, 3)], ["identity"], [0.0], sequence=False)
    nn.init.zeros_(head.steps[0].get_parameter("weight"))
    rows, _ = task_directions(head, features, labels, 3)
    share = rows[:, :2].square().sum() / rows.square().sum()
    assert rows.shape == (2, 8) and float(share) > 0.99


def test_task_directions_returns_the_head_at_nine_steps_of_its_training() -> None:
    torch.manual_seed(0)
    features, labels = torch.randn(6, 4).double(), torch.arange(6) % 3
    head = Head(["score"], [nn.Linear(4, 3).double()], ["identity"], [0.0], sequence=False)
    expected = []
    weight, bias = (value.detach().clone().requires_grad_() for value in head.steps[0].parameters())
    optimiser = torch.optim.Adam([weight, bias], RATE)
    for step in range(STEPS + 1):
        if step % (STEPS // 8) == 0:
            expected.append(weight.detach().clone())
        optimiser.zero_grad()
        nn.functional.cross_entropy(features @ weight.T + bias, labels).backward()
        optimiser.step()
    copies = task_directions(head, features, labels, 3).heads
    assert_close([copy.steps[0].get_parameter("weight").detach() for copy in copies], expected, rtol=1e-10, atol=1e-12)
