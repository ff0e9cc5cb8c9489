"""How far a trained adapter is from its linearisation at the same parameters (docs/theory.md P4)."""

from typing import Any

import torch
from datasets import Dataset
from jaxtyping import Float
from torch import Tensor, nn

from foretune.kernel.bounds import nonlinearity
from foretune.linear import Linearised, mean_loss, replaced
from foretune.tangents import centring, evaluating
from foretune.tangents.head import outputs_of
from foretune.task import Task

BATCH = 40


def measure(task: Task, linear: Linearised) -> dict[str, Any]:
    """Distances between f, f̄ = f0 + J0 δ at the trained θ and f0 on the evaluation examples, and the training loss.

    ``nonlinearity`` is ``‖f - f̄‖ / ‖f - f0‖`` of centred outputs (P4); ``relative`` is the published script's figure,
    the mean norm of ``f - f̄`` over the mean norm of f; ``divergence`` the mean ``KL(softmax f ‖ softmax f̄)`` in nats.
    """
    start = {name: nn.Parameter(x, requires_grad=False) for name, x in linear.initial().items()}
    with replaced(linear.network, start):
        f0 = outputs(task, linear.network, task.eval)
    f, f_linear = outputs(task, linear.network, task.eval), outputs(task, linear, task.eval)
    train = outputs(task, linear.network, task.train)
    centre = centring(task.num_outputs).T
    norms = {"lora": 0.0, "head": 0.0}
    for name, x in linear.theta().items():
        norms["lora" if "lora_" in name else "head"] += float((x.detach() - start[name]).square().sum())
    row = {
        "train_loss": float(mean_loss(task.loss, train, torch.tensor(task.train["labels"]))),
        "distance": norms["lora"] ** 0.5,
        "distance_head": norms["head"] ** 0.5,
        "nonlinearity": nonlinearity(f @ centre, f_linear @ centre, f0 @ centre),
        "relative": float((f - f_linear).norm(dim=1).mean() / f.norm(dim=1).mean()),
        "metric_linearised": task.compute_metrics(f_linear, task.eval["labels"])["eval_metric"],
        "metric_before": task.compute_metrics(f0, task.eval["labels"])["eval_metric"],
    }
    if task.loss == "cross_entropy":
        log_p, log_q = f.log_softmax(1), f_linear.log_softmax(1)
        row["divergence"] = float((log_p.exp() * (log_p - log_q)).sum(1).mean())
        row["agreement"] = float((f.argmax(1) == f_linear.argmax(1)).double().mean())
    return row


def outputs(task: Task, model: nn.Module, rows: Dataset) -> Float[Tensor, "n c"]:
    """Outputs for a whole split, in float64 where they are compared."""
    network = model.network if isinstance(model, Linearised) else model
    with evaluating(network), torch.no_grad():
        batches = (range(first, min(first + BATCH, len(rows))) for first in range(0, len(rows), BATCH))
        return torch.cat([outputs_of(model, task.collator([rows[i] for i in batch])).double() for batch in batches])
