"""Gradient descent on the squared loss in the paper's convention, beside its linearisation and its bounds.

The loss is ``R̃ = ½ Σ (f(x_i) - y_i)² + (λ/2) ‖θ - θ0‖²``, a sum over the training examples, in full batches. θ are the
LoRA factors alone. The head is the ridge regression on the frozen features and is not trained, because the theory has
one λ for all parameters that are trained. The linearisation ``f̄ = f0 + J0 δ̄`` takes the same steps.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from paper.measure import outputs
from torch import Tensor, nn

from foretune.kernel.bounds import Bound, next_gap, nonlinearity, output_gap
from foretune.linear import Linearised, linearise
from foretune.tangents import evaluating
from foretune.tangents.head import outputs_of
from foretune.task import Candidate, Task
from foretune.train import build_peft_model


@dataclass(frozen=True)
class Start:
    """A model before training: its outputs and its Jacobian on the training and on the evaluation examples."""

    linear: Linearised
    train: dict[str, Tensor]
    y: Float[Tensor, " n"]
    y_eval: Float[Tensor, " e"]
    f0: Float[Tensor, " n"]
    f0_eval: Float[Tensor, " e"]
    j0: Float[Tensor, "n p"]
    j0_eval: Float[Tensor, "e p"]

    @property
    def largest(self) -> float:
        """σ_max of the NTK."""
        return float(torch.linalg.eigvalsh((self.j0 @ self.j0.T).double())[-1])


def prepare(task: Task, candidate: Candidate, seed: int, ridge: float | None) -> Start:
    """Fit the head to the frozen features, and compute f0 and J0."""
    model = build_peft_model(task, candidate, seed)
    head = [module for name, module in model.named_modules() if isinstance(module, nn.Linear) and "lora_" not in name][
        -1
    ]
    trained = [parameter for name, parameter in model.named_parameters() if "lora_" not in name]
    for parameter in trained:
        parameter.requires_grad_(False)
    train, evaluation = (task.collator([rows[i] for i in range(len(rows))]) for rows in (task.train, task.eval))
    y, y_eval = (batch["labels"].double().flatten() for batch in (train, evaluation))
    fit_head(head, features(model, head, train), y, ridge)
    linear = linearise(model)
    f0, j0 = linear.jacobian(train)
    f0_eval, j0_eval = linear.jacobian(evaluation)
    return Start(linear, train, y, y_eval, *(x.flatten().double() for x in (f0, f0_eval)), j0[:, 0], j0_eval[:, 0])


def features(model: nn.Module, head: nn.Linear, batch: dict[str, Tensor]) -> Float[Tensor, "n d"]:
    """The inputs of a layer."""
    seen: list[Tensor] = []
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with evaluating(model), torch.no_grad():
        outputs_of(model, batch)
    handle.remove()
    return seen[-1].double()


def fit_head(head: nn.Linear, h: Float[Tensor, "n d"], y: Float[Tensor, " n"], ridge: float | None) -> None:
    """Fit a ridge regression with an offset; the strength, if None, is that with the least leave-one-out error."""
    centred, target = h - h.mean(0), y - y.mean()
    values, vectors = torch.linalg.eigh(centred @ centred.T)
    values, vectors = values[1:], vectors[:, 1:]  # without the mean, which the offset fits
    best = None
    for strength in torch.logspace(-3, 3, 25, dtype=torch.float64).tolist() if ridge is None else [ridge]:
        inverse = vectors @ torch.diag(1 / (values + strength)) @ vectors.T
        error = float((inverse @ target / inverse.diagonal()).square().sum())
        if best is None or error < best[0]:
            best = error, centred.T @ inverse @ target
    assert best is not None
    with torch.no_grad():
        head.weight.copy_(best[1][None])
        head.bias.copy_((y.mean() - h.mean(0) @ best[1])[None])


def descend(task: Task, start: Start, strength: float, rate: float, steps: int) -> dict[str, Any]:
    """Train from the start with one λ (sum convention), and reset the parameters afterwards."""
    linear, j0, y = start.linear, start.j0, start.y
    theta = list(linear.theta().values())
    theta0 = [x.detach().clone() for x in theta]
    largest, gap = Bound(start.largest, certified=True), Bound(0.0, certified=True)
    linear_delta = torch.zeros(j0.shape[1])
    losses = []

    def pull(delta: Tensor) -> Tensor:  # gradient of the linearised loss at a displacement
        return j0.T @ (start.f0 + (j0 @ delta).double() - y).float()

    for step in range(steps + 1):
        with evaluating(linear.network), torch.enable_grad():
            f = outputs_of(linear.network, start.train).flatten()
            loss = (f - y.float()).square().sum() / 2
            gradient = torch.cat([g.flatten() for g in torch.autograd.grad(loss, theta)])
        losses.append(2 * loss.item() / len(y))
        if step == steps:
            break
        delta = linear.displacement()
        gap = next_gap(gap, float((gradient - pull(delta)).norm()), rate=rate, strength=strength, curvature=largest)
        linear_delta -= rate * (pull(linear_delta) + strength * linear_delta)
        move = (rate * (gradient + strength * delta)).split([x.numel() for x in theta])
        with torch.no_grad():
            for x, part in zip(theta, move, strict=True):
                x -= part.view_as(x)
    row = compare(task, start, f.detach().double(), linear_delta, gap)
    with torch.no_grad():
        for x, first in zip(theta, theta0, strict=True):
            x.copy_(first)
    return row | {"train_loss": losses[-1], "losses": losses, "rate": rate, "steps": steps}


def compare(
    task: Task, start: Start, f: Float[Tensor, " n"], linear_delta: Float[Tensor, " p"], gap: Bound
) -> dict[str, Any]:
    """Compare the trained network with its linearisation at the same θ, with the linearised run, and with P3."""
    linear = start.linear
    delta = linear.displacement()
    f_eval = outputs(task, linear.network, task.eval).flatten()
    same, same_eval = start.f0 + (start.j0 @ delta).double(), start.f0_eval + (start.j0_eval @ delta).double()
    run, run_eval = (
        f0 + (j @ linear_delta).double() for f0, j in ((start.f0, start.j0), (start.f0_eval, start.j0_eval))
    )
    bounds = [
        output_gap(gap, float((one - other).abs()), float(row.norm())).value
        for one, other, row in zip(f, same, start.j0, strict=True)
    ]
    moved = linearise(linear.network).jacobian(start.train)[1][:, 0] - start.j0

    def metric(outputs: Tensor) -> float:
        return task.compute_metrics(outputs, start.y_eval)["eval_metric"]

    return {
        "eval_metric": metric(f_eval),
        "eval_loss": float((f_eval - start.y_eval).square().mean()),
        "metric_before": metric(start.f0_eval),
        "metric_linearised": metric(same_eval),
        "metric_linearised_run": metric(run_eval),
        "loss_linearised_run": float((run_eval - start.y_eval).square().mean()),
        "distance": float(delta.norm()),
        "distance_linearised_run": float(linear_delta.norm()),
        "nonlinearity": nonlinearity(f_eval, same_eval, start.f0_eval),
        "nonlinearity_run": nonlinearity(f_eval, run_eval, start.f0_eval),
        "relative": float((f_eval - same_eval).abs().mean() / f_eval.abs().mean()),
        "gap": float((delta - linear_delta).norm()),
        "gap_bound": gap.value,
        "output_gap": float((f - run).norm()),
        "output_gap_bound": float(torch.tensor(bounds).norm()),
        "rho0": float((start.y - start.f0).norm()),
        "jacobian_norm": start.largest**0.5,
        "smoothness": float(torch.linalg.matrix_norm(moved.double(), 2) / delta.norm()),
    }
