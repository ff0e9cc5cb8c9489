"""The output basis: directions of the head's features along which tangents are taken (docs/theory.md section 6)."""

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.tangents.head import Head
from foretune.task.task import directions_taken

STEPS, RATE = 64, 1e-3  # of the head's training on frozen features
SAMPLE = 64  # examples over which the gradients of a head that is not affine are averaged


def centring(num_outputs: int) -> Float[Tensor, "k c"]:
    """Orthonormal rows spanning the centred outputs (k = c - 1): softmax does not see the all-ones direction.

    A single output (regression) is its own direction.
    """
    if num_outputs == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    eye = torch.eye(num_outputs, dtype=torch.float64)
    return torch.linalg.svd(eye - 1 / num_outputs)[2][: num_outputs - 1]


def centred(outputs: Float[Tensor, "n c"]) -> Float[Tensor, "n k"]:
    """Centred coordinates ``P f`` of outputs f: without what softmax does not see, and nothing else lost."""
    return outputs.double() @ centring(outputs.shape[1]).T


class TaskDirections(NamedTuple):
    """What a head needs of its features to learn a task.

    Attributes:
        rows: Where the head turns, scaled by how far.
        heads: What it is on the way, at several moments.
    """

    rows: Float[Tensor, "k d"]
    heads: tuple[Head, ...]


def task_directions(head: Head, features: Float[Tensor, "n d"], labels: Tensor, classes: int) -> TaskDirections:
    """The k = max(classes - 1, 1) directions of the features towards which the head turns as it learns the task.

    A copy of the head is trained on the frozen features (``STEPS`` steps of Adam on all of them, rate ``RATE``, the
    scale on which new heads train). The mean gradients of its centred outputs on the way, less their components along
    the first ones, have these leading directions: in a fine-tune, layers are pushed along where the head comes to look.
    """
    head = copy.deepcopy(head).cpu().double().requires_grad_(True).eval()
    x, mix = features.detach().double().cpu(), centring(classes)
    y = labels.cpu().long() if classes > 1 else labels.cpu().double()
    optimiser = torch.optim.Adam(head.parameters(), RATE)
    rows, heads = [], []
    with torch.enable_grad():
        for step in range(STEPS + 1):
            out = head(x)
            loss = nn.functional.cross_entropy(out, y) if classes > 1 else nn.functional.mse_loss(out.squeeze(1), y)
            if step % (STEPS // 8) == 0:
                rows.append(mix @ head.gradients(x[:SAMPLE]).mean(0))
                heads.append(copy.deepcopy(head))
            optimiser.zero_grad()
            loss.backward(inputs=list(head.parameters()))
            optimiser.step()
    _, sizes, first = torch.linalg.svd(rows[0], full_matrices=False)
    first = first[sizes > 1e-12]
    path = torch.cat(rows[1:])
    _, values, directions = torch.linalg.svd(path - (path @ first.T) @ first, full_matrices=False)
    return TaskDirections((values[:, None] * directions)[: len(mix)], tuple(heads))


def num_directions(head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"], linear: bool) -> int:
    """How many directions hold the outputs' gradients and the task's: one number for all examples.

    With a ``linear`` head it is the rank of both kinds of rows together. Otherwise the head's rows differ from
    example to example and are counted in full.
    """
    if linear:
        rank = _rank(torch.cat([_normalised(head_rows)[0], task_rows.double()]))
    else:
        rank = head_rows.shape[1] + _rank(task_rows.double())
    return max(1, min(rank, head_rows.shape[2]))


def output_basis(
    head_rows: Float[Tensor, "b k d"], task_rows: Float[Tensor, "m d"], count: int
) -> Float[Tensor, "b q d"]:
    """``count`` orthonormal rows: the gradients of the centred outputs first, then what the task's rows add to them.

    First-order changes of the outputs are exact if both kinds of rows fit into ``count``; else they share it.
    """
    kept = max(count - len(task_rows), (count + 1) // 2)
    own = torch.linalg.svd(_normalised(head_rows), full_matrices=False)[2][:, :kept]
    task = task_rows.double()
    rest = task - (task @ own.mT) @ own
    added = torch.linalg.svd(rest, full_matrices=False)[2][:, : count - own.shape[1]]
    # where the rest vanishes its directions are arbitrary: QR keeps the span of the first rows and completes it
    together = torch.linalg.qr(torch.cat([own, added], 1).mT).Q.mT
    assert together.shape[1] == count
    return together


def limited(
    basis: Float[Tensor, "k s d"], features: Float[Tensor, "b d"], heads: Sequence[Head]
) -> Float[Tensor, "m q d"]:
    r"""A basis or, if it has too many rows, a few in its span: for each example those along which its loss bends most.

    .. math:: H(x) = \sum_t J_t^\top \left(\operatorname{diag} p_t - p_t p_t^\top\right) J_t, \qquad
        p_t = \operatorname{softmax} f_t(h(x)), \quad J_t = \partial f_t / \partial h

    for the head f at moments t of learning the task on frozen features: its leading eigenvectors. They tell the classes
    apart between which the example wavers, whatever its label is.
    """
    count = directions_taken(basis.shape[1])
    if count == basis.shape[1]:
        return basis
    rows, x = basis.double().cpu(), features.detach().double().cpu()
    bend = torch.zeros(len(x), rows.shape[1], rows.shape[1], dtype=x.dtype)
    for head in heads:
        jacobian = head.gradients(x) @ rows.mT
        with torch.no_grad():
            p = head(x).softmax(1)
        mean = (p[:, None] @ jacobian).squeeze(1)
        bend += jacobian.mT @ (p[:, :, None] * jacobian) - mean[:, :, None] * mean[:, None]
    turn = torch.linalg.eigh(bend)[1].mT.flip(1)[:, :count]
    return (turn @ rows).to(basis)


def _normalised(rows: Float[Tensor, "b k d"]) -> Float[Tensor, "b k d"]:
    rows = rows.double()
    return rows / rows.flatten(1).norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)[:, None, None]


def _rank(rows: Float[Tensor, "m d"]) -> int:
    values = torch.linalg.svdvals(rows)
    return int((values > 1e-6 * values[0]).sum())
