"""Along a real run: a bound on its distance from the linearised run, step by step (theory.md P3)."""

import hashlib
import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.optim import SGD, Optimizer
from transformers import TrainerCallback

from foretune.linear import Linearised, mean_loss
from foretune.results import provenance, write_json

GAP_FILE = "gap.json"
CURVATURE = {"mean_squared_error": 2.0, "cross_entropy": 0.5}  # largest eigenvalue of an example's loss in its outputs


class GapRecorder(TrainerCallback):
    """Bounds how far a network is from its linearisation while both train on the same batches (theory.md P3).

    The linearised run takes plain steps ``δ̄ ← δ̄ - η (∇R̄(δ̄) + λ (θ0 + δ̄))`` on the mean loss of each batch, with the
    rates η and the weight decay λ of the real one. Where that step would have led from where the real run is, and where
    the real run really went, are ``η‖h‖`` apart, and

        E ← (1 - ηλ) E + η‖h‖  from E = 0   bounds   ‖δ - δ̄‖

    as long as ``η (c σ + λ) ≤ 1``: σ is the largest eigenvalue of the batch's own kernel, and c bounds the curvature of
    its mean loss in the outputs, 2/n for squared errors and 1/(2n) for cross-entropy (P3 is stated for the former; the
    linearised step contracts by the same argument for any convex loss). It holds for what the run really did, dropout,
    clipping and rounding included, up to the rounding of these numbers themselves.

    Nothing is certified, and ``reason`` says why, if a step is too long, or the optimiser is not plain ``SGD`` with one
    rate. The run itself is not changed. A step costs the batch's Jacobian: a forward pass and a backward pass for each
    output.

    Args:
        linear: The linearised network, from before the first step.
        loss: ``mean_squared_error`` or ``cross_entropy``, averaged over a batch.
    """

    def __init__(self, linear: Linearised, loss: str) -> None:
        self.linear, self.loss = linear, loss
        self.reason: str | None = None
        self.gap = 0.0
        self.steps: list[dict[str, float]] = []
        self.seconds = 0.0
        self._batch: dict[str, Tensor] = {}
        self._aim: tuple[Float[Tensor, " p"], float, float, float] | None = None
        self._handle: Any = None

    @contextmanager
    def step(self, batch: Mapping[str, Tensor], optimiser: Optimizer) -> Generator[None]:
        """Around ``optimiser.step()`` in a training loop of one's own, once gradients of the batch are there."""
        self._before(batch, optimiser)
        try:
            yield
        finally:
            self._after()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the training arguments, and from now on at the batches."""
        if state.global_step > 0:
            self.reason = f"the run was interrupted: what came before step {state.global_step} was not recorded"
        elif args.gradient_accumulation_steps > 1:
            self.reason = "a step takes several batches (gradient_accumulation_steps)"
        elif args.label_smoothing_factor > 0:
            self.reason = "labels are smoothed (label_smoothing_factor)"
        elif args.world_size * max(args.n_gpu, 1) > 1:
            self.reason = "batches are spread over several devices"
        self._handle = self.linear.network.register_forward_pre_hook(self._see, with_kwargs=True)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **rest: Any) -> None:
        """Before a step of ``Trainer``."""
        self._before(self._batch, rest["optimizer"])

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a step of ``Trainer``."""
        self._after()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The run is over."""
        self._handle.remove()

    def save(self, folder: str | Path) -> None:
        """Write ``gap.json`` beside the adapter that the run ended with: ``foretune certify`` reads it."""
        record: dict[str, Any] = {"certified": self.reason is None, "reason": self.reason, "loss": self.loss}
        record |= {"gap": self.gap if self.reason is None else None, "parameters": digest(self.linear)}
        record |= {"seconds_per_step": self.seconds / max(len(self.steps), 1), "steps": self.steps}
        write_json(Path(folder) / GAP_FILE, provenance(torch.initial_seed(), self.seconds) | record)

    def _see(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if network.training and "labels" in kwargs:
            count = len(kwargs["labels"])
            rows = {name: x for name, x in kwargs.items() if isinstance(x, Tensor) and x.dim() and len(x) == count}
            self._batch = rows

    def _before(self, batch: Mapping[str, Tensor], optimiser: Optimizer) -> None:
        started = time.perf_counter()
        self.reason = self.reason or _not_plain(optimiser, self.linear)
        if self.reason is not None:
            return
        labels = batch["labels"]
        f0, jacobian = self.linear.jacobian(batch)
        rows, delta = jacobian.flatten(0, 1), self.linear.displacement()
        largest = float(torch.linalg.eigvalsh((rows @ rows.T).double())[-1])
        with torch.enable_grad():
            outputs = (f0 + (rows @ delta).view_as(f0)).requires_grad_()
            (slope,) = torch.autograd.grad(mean_loss(self.loss, outputs, labels), outputs)
        decay = {id(p): float(group["weight_decay"]) for group in optimiser.param_groups for p in group["params"]}
        pull = torch.cat([decay[id(p)] * p.detach().flatten() for p in self.linear.theta().values()])
        rate, low, high = float(optimiser.param_groups[0]["lr"]), min(decay.values()), max(decay.values())
        curvature = CURVATURE[self.loss] / len(labels) * largest
        if not rate * (curvature + high) <= 1:
            self.reason = (
                f"step {len(self.steps) + 1} is too long: η(cσ + λ) = {rate * (curvature + high):.3g} is above 1; "
                f"a learning_rate of at most {1 / (curvature + high):.2g} would do on its batch"
            )
            return
        self._aim = delta - rate * (rows.T @ slope.flatten() + pull), rate, low, curvature
        self.seconds += time.perf_counter() - started

    def _after(self) -> None:
        if self._aim is None:
            return
        aim, rate, strength, curvature = self._aim
        self._aim = None
        missed = float((self.linear.displacement() - aim).norm())
        defect = missed / rate if rate > 0 else 0.0
        self.gap = next_gap(self.gap, defect, rate=rate, strength=strength)
        if not math.isfinite(self.gap):
            self.reason = f"the run diverged at step {len(self.steps) + 1}"
            return
        self.steps.append({"gap": self.gap, "defect": defect, "rate": rate, "curvature": curvature})


def next_gap(gap: float, defect: float, *, rate: float, strength: float) -> float:
    """``E_{k+1} = (1 - ηλ) E_k + η‖h_k‖`` (theory.md P3).

    >>> round(next_gap(1.0, 2.0, rate=0.1, strength=0.5), 6)
    1.15

    Args:
        gap: E_k, a bound on ``‖δ_k - δ̄_k‖``.
        defect: ``‖h_k‖``.
        rate: η.
        strength: λ.
    """
    return (1 - rate * strength) * gap + rate * defect


def digest(linear: Linearised) -> str:
    """A hash of θ and θ0: whether a record is about these parameters."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in (*linear.theta().values(), linear.start):
        found.update(tensor.detach().flatten().to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()


def _not_plain(optimiser: Optimizer, linear: Linearised) -> str | None:
    """Why an optimiser's steps are not plain ones in all of θ with one rate; None if they are."""
    inner = getattr(optimiser, "optimizer", optimiser)  # accelerate wraps it
    groups = inner.param_groups
    if type(inner) is not SGD:
        return f"the optimiser is {type(inner).__name__}, not plain SGD"
    if any(group["momentum"] or group["maximize"] for group in groups):
        return "the optimiser has momentum"
    if len({float(group["lr"]) for group in groups}) > 1:
        return "parameters train at several rates"
    if {id(p) for p in linear.theta().values()} - {id(p) for group in groups for p in group["params"]}:
        return "the optimiser has not all trained parameters"
    return None
