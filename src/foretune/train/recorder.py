"""Record, step by step, a bound on the distance of a real run from the linearised run (docs/theory.md P3)."""

import hashlib
import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import TrainerCallback

from foretune.kernel.bounds import Bound, next_gap
from foretune.linear import Linearised, mean_loss
from foretune.results import provenance, write_json
from foretune.tangents import centring
from foretune.train.proximal import RULE, STRENGTH

GAP_FILE = "gap.json"
# Largest eigenvalue of the Hessian of one example's loss in its outputs.
CURVATURE = {"mean_squared_error": 2.0, "cross_entropy": 0.5}


class GapRecorder(TrainerCallback):
    """Bounds the distance of a network from its linearisation while both train on the same batches (docs/theory.md P3).

    The linearised run takes plain steps ``δ̄ ← δ̄ - η (∇R̄(δ̄) + γ (θ0 + δ̄) + λ δ̄)`` on the mean loss of each batch. Its
    learning rates η, weight decay γ and proximal strength λ are those of the real run.

    At every step, the real run and a linearised step from the same parameters end ``η‖h‖`` apart. Starting from E = 0,
    ``E ← ‖I - η(H + γ + λ)‖ E + η‖h‖`` therefore bounds ``‖δ - δ̄‖`` (:func:`foretune.kernel.bounds.next_gap`). The
    Hessian H of the linearised step is at most ``L = c σ``. Here σ is the largest eigenvalue of the batch's own kernel,
    and c bounds the curvature of the mean loss in the outputs: 2/n for squared errors, 1/(2n) for cross-entropy. The
    bound includes everything that the run really does, such as dropout, clipping and rounding. It does not include the
    rounding of the bound itself.

    Nothing is certified, and ``reason`` says why, if the optimiser is not plain ``SGD`` with one learning rate. The
    same holds if a step is so long that the linearised run itself need not contract: ``η (L + γ + λ) > 2``. The
    recorder does not change the run. Per step it computes the Jacobian of the batch, which takes one forward pass and
    one backward pass per centred output for every example.

    Args:
        linear: The linearised network, made before the first step.
        loss: ``mean_squared_error`` or ``cross_entropy``, averaged over a batch.

    Attributes:
        reason: Why nothing is certified; None so far.
        gap: The bound E after the last step.
        steps: E, ``‖h‖``, η and the curvature of every step.
        seconds: Time spent on recording.
    """

    def __init__(self, linear: Linearised, loss: str) -> None:
        self.linear, self.loss = linear, loss
        self.reason: str | None = None
        self.gap = 0.0
        self.steps: list[dict[str, float]] = []
        self.seconds = 0.0
        self._batch: dict[str, Tensor] = {}
        self._last = torch.zeros_like(linear.start)
        self._aim: tuple[Float[Tensor, " p"], float, float, float] | None = None
        self._handle: Any = None

    @contextmanager
    def step(self, batch: Mapping[str, Tensor], optimiser: Optimizer) -> Generator[None]:
        """Record a step of your own training loop: call ``optimiser.step()`` inside the block, after ``backward``."""
        self._before(batch, optimiser)
        try:
            yield
        finally:
            self._after()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Check the training arguments, and start to watch the batches."""
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
        """Compute where the linearised step would lead, before a step of ``Trainer``."""
        self._before(self._batch, rest["optimizer"])
        self._batch = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Update the bound after a step of ``Trainer``."""
        self._after()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Stop watching the batches."""
        self._handle.remove()

    def save(self, folder: str | Path) -> None:
        """Write ``gap.json`` into the folder of the adapter, where ``foretune certify`` reads it."""
        record: dict[str, Any] = {"certified": self.reason is None, "reason": self.reason, "loss": self.loss}
        record |= {
            "gap": self.gap if self.reason is None else None,
            "parameters": digest(self._last, self.linear.start),
        }
        drops = (module.p for module in self.linear.network.modules() if isinstance(module, nn.Dropout))
        record |= {"dropout": any(p > 0 for p in drops)}
        record |= {"seconds_per_step": self.seconds / max(len(self.steps), 1), "steps": self.steps}
        write_json(Path(folder) / GAP_FILE, provenance(torch.initial_seed(), self.seconds) | record)

    def _see(self, network: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if network.training and "labels" in kwargs:
            count = len(kwargs["labels"])
            rows = {name: x for name, x in kwargs.items() if isinstance(x, Tensor) and x.dim() and len(x) == count}
            self._batch = rows

    def _before(self, batch: Mapping[str, Tensor], optimiser: Optimizer) -> None:
        started = time.perf_counter()
        delta = self.linear.displacement()
        if "labels" not in batch:
            self.reason = self.reason or "the model was not called with labels"
        elif not torch.equal(delta, self._last.to(delta)):
            self.reason = self.reason or f"parameters were changed outside of steps, before step {len(self.steps) + 1}"
        self.reason = self.reason or _not_plain(optimiser, self.linear)
        if self.reason is not None:
            return
        labels = batch["labels"]
        f0, jacobian = self.linear.jacobian(batch, centred=True)  # cross-entropy ignores the mean of the outputs
        rows, mix = jacobian.flatten(0, 1), centring(f0.shape[1] + (self.loss == "cross_entropy")).to(f0)
        largest = float(torch.linalg.eigvalsh((rows @ rows.T).double())[-1])
        with torch.enable_grad():
            outputs = (f0 + (rows @ delta).view_as(f0)).requires_grad_()
            (slope,) = torch.autograd.grad(mean_loss(self.loss, outputs @ mix, labels), outputs)
        rate = float(optimiser.param_groups[0]["lr"])
        groups = {id(p): group for group in optimiser.param_groups for p in group["params"]}
        pulls, strengths, start = [], [], self.linear.initial()
        for name, value in self.linear.theta().items():
            decay, strength = _strengths(groups[id(value)], rate)
            pulls.append((decay * value.detach() + strength * (value.detach() - start[name])).flatten())
            strengths.append(decay + strength)
        low, high = min(strengths), max(strengths)
        curvature = CURVATURE[self.loss] / len(labels) * largest
        length = rate * (curvature + high)
        if not length <= 2:
            self.reason = (
                f"step {len(self.steps) + 1} is too long: η(L + γ + λ) = {length:.3g} is above 2, where even the "
                f"linearised run need not contract (on this batch a learning rate of {2 / (curvature + high):.2g} "
                "would do)"
            )
            return
        aim = delta - rate * (rows.T @ slope.flatten() + torch.cat(pulls))
        self._aim = aim, rate, low, curvature + high - low  # the step's Hessian lies between low and curvature + high
        self.seconds += time.perf_counter() - started

    def _after(self) -> None:
        if self._aim is None:
            return
        aim, rate, strength, curvature = self._aim
        self._aim, self._last = None, self.linear.displacement()
        missed = float((self._last - aim).norm())
        defect = missed / rate if rate > 0 else 0.0
        bound = Bound(self.gap, certified=True)
        self.gap = next_gap(
            bound, defect, rate=rate, strength=strength, curvature=Bound(curvature, certified=True)
        ).value
        if not math.isfinite(self.gap):
            self.reason = f"the run diverged at step {len(self.steps) + 1}"
            return
        self.steps.append({"gap": self.gap, "defect": defect, "rate": rate, "curvature": curvature})


def digest(displacement: Float[Tensor, " p"], start: Float[Tensor, " p"]) -> str:
    """Return a hash of δ and θ0, which tells whether a record belongs to these parameters."""
    checksum = hashlib.blake2b(digest_size=16)
    for tensor in (displacement, start):
        checksum.update(tensor.to("cpu", torch.float32).numpy().tobytes())
    return checksum.hexdigest()


def _strengths(group: dict[str, Any], rate: float) -> tuple[float, float]:
    """γ and λ of a parameter group. λ is scaled by 1 - ηγ, because weight decay acts after the proximal term."""
    decay = float(group["weight_decay"])
    return decay, float(group.get(STRENGTH, 0.0)) * (1 - rate * decay)


def _not_plain(optimiser: Optimizer, linear: Linearised) -> str | None:
    """Why an optimiser does not take plain SGD steps in all of θ with one rate; None if it does."""
    inner = getattr(optimiser, "optimizer", optimiser)  # accelerate wraps it
    groups = inner.param_groups
    if type(inner) is not SGD:
        return f"the optimiser is {type(inner).__name__}, not plain SGD"
    if inner.defaults.get(RULE) == "selective":
        return "the proximal term acts selectively"
    if any(group["momentum"] or group["maximize"] for group in groups):
        return "the optimiser has momentum"
    if len({float(group["lr"]) for group in groups}) > 1:
        return "parameters train at several rates"
    if {id(p) for p in linear.theta().values()} - {id(p) for group in groups for p in group["params"]}:
        return "the optimiser does not have all trained parameters"
    return None
