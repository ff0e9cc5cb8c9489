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
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from transformers import TrainerCallback

from foretune.kernel.bounds import Bound, next_gap
from foretune.linear import Linearised, mean_loss
from foretune.results import provenance, write_json
from foretune.tangents import centring
from foretune.train.proximal import RULE, STRENGTH

GAP_FILE = "gap.json"
CURVATURE = {"mean_squared_error": 2.0, "cross_entropy": 0.5}  # largest eigenvalue of an example's loss in its outputs


class GapRecorder(TrainerCallback):
    """Bounds how far a network is from its linearisation while both train on the same batches (theory.md P3).

    The linearised run takes plain steps ``δ̄ ← δ̄ - η (∇R̄(δ̄) + γ (θ0 + δ̄) + λ δ̄)`` on the mean loss of each batch, with
    the real one's rates η, weight decay γ and proximal strength λ. Where such a step leads from where the real run is,
    and where the real run goes, are ``η‖h‖`` apart; ``E ← ‖I - η(H + γ + λ)‖ E + η‖h‖`` from E = 0 bounds ``‖δ - δ̄‖``
    (:func:`foretune.kernel.bounds.next_gap`). The linearised step's Hessian H is at most ``L = c σ``: σ is the largest
    eigenvalue of the batch's own kernel, and c bounds the curvature of the mean loss in the outputs, 2/n for squared
    errors, 1/(2n) for cross-entropy. It holds for what the run really does, dropout, clipping and rounding included, up
    to the rounding of these numbers themselves.

    Nothing is certified, and ``reason`` says why, if the optimiser is not plain ``SGD`` with one rate, or a step is so
    long that the linearised run itself would not contract: ``η (L + γ + λ) > 2``. The run is not changed. A step costs
    the batch's Jacobian: a forward pass and a backward pass for each centred output, example by example.

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
        self._last = torch.zeros_like(linear.start)
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
        self._batch = {}

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """After a step of ``Trainer``."""
        self._after()

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """The run is over."""
        self._handle.remove()

    def save(self, folder: str | Path) -> None:
        """Write ``gap.json`` beside the adapter: ``foretune certify`` reads it, for the parameters of the last step."""
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
        f0, jacobian = self.linear.jacobian(batch, centred=True)  # cross-entropy does not see the other direction
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
                f"linearised run need not contract (a rate of {2 / (curvature + high):.2g} would do for its batch)"
            )
            return
        aim = delta - rate * (rows.T @ slope.flatten() + torch.cat(pulls))
        self._aim = aim, rate, low, curvature + high - low  # eigenvalues of the step's Hessian: low to curvature + high
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
    """A hash of δ and θ0: whether a record is about these parameters."""
    found = hashlib.blake2b(digest_size=16)
    for tensor in (displacement, start):
        found.update(tensor.to("cpu", torch.float32).numpy().tobytes())
    return found.hexdigest()


def _strengths(group: dict[str, Any], rate: float) -> tuple[float, float]:
    """γ and λ of a parameter group; the decay acts on what the proximal term, which comes first, leaves."""
    decay = float(group["weight_decay"])
    return decay, float(group.get(STRENGTH, 0.0)) * (1 - rate * decay)


def _not_plain(optimiser: Optimizer, linear: Linearised) -> str | None:
    """Why an optimiser's steps are not plain ones in all of θ with one rate; None if they are."""
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
        return "the optimiser has not all trained parameters"
    return None
