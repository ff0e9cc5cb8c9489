"""The output basis: the few directions of the head's features along which tangents are taken.

The head is the trained end of the network, and its features are the vectors that enter it. Every direction costs one
backward pass, so the basis holds only directions that change the outputs now, or once the head has learnt the task
(docs/theory.md section 6).
"""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.tangents.head import Head
from foretune.task.task import directions_taken

STEPS, RATE = 64, 1e-3  # steps and learning rate of the head's training on frozen features
SAMPLE = 64  # examples over which the head's gradients are averaged


def centring(num_outputs: int) -> Float[Tensor, "k c"]:
    """Orthonormal rows that span the centred outputs: k = c - 1 directions whose entries sum to zero.

    Softmax does not depend on the remaining all-ones direction. A single output (regression) is its own direction.
    """
    if num_outputs == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    eye = torch.eye(num_outputs, dtype=torch.float64)
    return torch.linalg.svd(eye - 1 / num_outputs)[2][: num_outputs - 1]


def centred(outputs: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
    """Centred coordinates ``P f`` of outputs f, where P is :func:`centring`.

    They leave out only the mean of the outputs, on which softmax does not depend.
    """
    return outputs.double() @ centring(outputs.shape[1]).T


class TaskDirections(NamedTuple):
    """The directions of the features that a head uses more and more as it learns the task.

    Attributes:
        rows: The directions; the length of a row says how far the head turns towards it.
        heads: Copies of the head at several steps of its training.
    """

    rows: Float[Tensor, "k d"]
    heads: tuple[Head, ...]


def task_directions(head: Head, features: Float[Tensor, "n d"], labels: Tensor, classes: int) -> TaskDirections:
    """Find the k = max(classes - 1, 1) directions of the features towards which the head turns as it learns the task.

    A copy of the head is trained on the frozen features, with ``STEPS`` steps of Adam on all of them at learning rate
    ``RATE``. At nine steps, the gradients of its centred outputs in the features are averaged over examples. What the
    first average spans is removed from the others. The leading right singular vectors of the rest are the directions.
    A fine-tune moves the features along the head's gradients, so it will move them along these directions later.

    Args:
        head: The head before training; it is left unchanged.
        features: The features of the training examples before training.
        labels: Their class indices, or their targets for regression.
        classes: Number of classes, 1 for regression.
    """
    head = copy.deepcopy(head).cpu().double().requires_grad_(True).eval()
    x, centred_rows = features.detach().double().cpu(), centring(classes)
    y = labels.cpu().long() if classes > 1 else labels.cpu().double()
    optimiser = torch.optim.Adam(head.parameters(), RATE)
    rows, heads = [], []
    with torch.enable_grad():
        for step in range(STEPS + 1):
            out = head(x)
            loss = nn.functional.cross_entropy(out, y) if classes > 1 else nn.functional.mse_loss(out.squeeze(1), y)
            if step % (STEPS // 8) == 0:
                rows.append(centred_rows @ head.gradients(x[:SAMPLE]).mean(0))
                heads.append(copy.deepcopy(head))
            optimiser.zero_grad()
            loss.backward(inputs=list(head.parameters()))
            optimiser.step()
    _, sizes, initial = torch.linalg.svd(rows[0], full_matrices=False)
    initial = initial[sizes > 1e-12]
    later = torch.cat(rows[1:])
    _, values, directions = torch.linalg.svd(later - (later @ initial.T) @ initial, full_matrices=False)
    return TaskDirections((values[:, None] * directions)[: len(centred_rows)], tuple(heads))


def num_directions(head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"], linear: bool) -> int:
    """Count the directions that span both the outputs' gradients and the directions of the task.

    The number is the same for all examples. For a linear head it is the rank of both kinds of rows together.
    Otherwise the head's rows differ between examples, so all of them are counted.

    Args:
        head_rows: Gradients of the centred outputs in the features, for every example or one for all.
        task_rows: The directions of the task, from :func:`task_directions`.
        linear: Whether the outputs are affine in the features.
    """
    if linear:
        rank = _rank(torch.cat([_normalised(head_rows)[0], task_rows.double()]))
    else:
        rank = head_rows.shape[1] + _rank(task_rows.double())
    return max(1, min(rank, head_rows.shape[2]))


def output_basis(
    head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"], count: int
) -> Float[Tensor, "b q d"]:
    """Compute ``count`` orthonormal rows that span the outputs' gradients, and then the directions of the task.

    If both kinds of rows fit into ``count``, first-order changes of the outputs are exact. Otherwise the gradients get
    at least half of the rows.

    Args:
        head_rows: Gradients of the centred outputs in the features, for every example or one for all.
        task_rows: The directions of the task, from :func:`task_directions`.
        count: Number of rows of the basis.
    """
    num_head_rows = max(count - len(task_rows), (count + 1) // 2)
    head_basis = torch.linalg.svd(_normalised(head_rows), full_matrices=False)[2][:, :num_head_rows]
    task = task_rows.double()
    rest = task - (task @ head_basis.mT) @ head_basis
    task_basis = torch.linalg.svd(rest, full_matrices=False)[2][:, : count - head_basis.shape[1]]
    # if the rest is zero, its singular vectors are arbitrary; QR keeps the span of the first rows and completes it
    basis = torch.linalg.qr(torch.cat([head_basis, task_basis], 1).mT).Q.mT
    assert basis.shape[1] == count
    return basis


def limited_basis(
    basis: Float[Tensor, "k s d"], features: Float[Tensor, "b d"], heads: Sequence[Head]
) -> Float[Tensor, "m q d"]:
    r"""Return the basis. If it has too many rows, return fewer directions in its span for every example.

    These are the directions along which the loss of the example curves most: the leading eigenvectors of

    .. math:: H(x) = \sum_t J_t^\top \left(\operatorname{diag} p_t - p_t p_t^\top\right) J_t, \qquad
        p_t = \operatorname{softmax} f_t(h(x)), \quad J_t = \partial f_t / \partial h

    where f_t is the head at step t of learning the task on frozen features h. They separate the classes that are likely
    for the example. They do not depend on its label.

    Args:
        basis: Orthonormal rows, for every example or one for all (k = 1).
        features: The features of the examples.
        heads: The head at several steps, from :func:`task_directions`.
    """
    count = directions_taken(basis.shape[1])
    if count == basis.shape[1]:
        return basis
    rows, x = basis.double().cpu(), features.detach().double().cpu()
    curvature = torch.zeros(len(x), rows.shape[1], rows.shape[1], dtype=x.dtype)
    for head in heads:
        jacobian = head.gradients(x) @ rows.mT
        with torch.no_grad():
            p = head(x).softmax(1)
        mean = (p[:, None] @ jacobian).squeeze(1)
        curvature += jacobian.mT @ (p[:, :, None] * jacobian) - mean[:, :, None] * mean[:, None]
    leading = torch.linalg.eigh(curvature)[1].mT.flip(1)[:, :count]
    return (leading @ rows).to(basis)


def _normalised(rows: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
    """The rows of every example, divided by their Frobenius norm."""
    rows = rows.double()
    return rows / rows.flatten(1).norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)[:, None, None]


def _rank(rows: Float[Tensor, "m d"]) -> int:
    """The rank of a matrix, up to rounding."""
    values = torch.linalg.svdvals(rows)
    return int((values > 1e-6 * values[0]).sum())
