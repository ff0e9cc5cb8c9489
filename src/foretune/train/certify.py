"""How linear a fine-tune was: measured for any adapter (theory.md P4), bounded for recorded runs of SGD (P3)."""

import math
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.kernel.bounds import Bound, nonlinearity, output_gap
from foretune.linear import Linearised, replaced
from foretune.results import provenance, read_json, write_json
from foretune.run_directory import run_directory
from foretune.tangents import all_outputs, batches, centred
from foretune.tangents.adapters import base_name
from foretune.task import Task, load_task
from foretune.train.adapter import load_adapter, result_of
from foretune.train.recorder import GAP_FILE, digest

# the linearised model misses the square of this share of the squared change: 1%, a quarter
LAZY, NEARLY_LINEAR = 0.1, 0.5
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class LayerLinearity:
    """One layer's part, all others being as they were before training.

    Attributes:
        layer: Its name in the model without adapters.
        displacement: ``‖δ‖`` of its parameters.
        share: ``‖J0 δ‖`` of this layer over that of all.
        nonlinearity: P4 when only this layer moves.
    """

    layer: str
    displacement: float
    share: float
    nonlinearity: float


@dataclass(frozen=True)
class DistanceBound:
    """How far the run can be from the linearised run on the same batches (theory.md P3).

    Attributes:
        certified: Whether there is a bound; what follows is None if not.
        reason: Why there is none.
        parameters: ``E ≥ ‖δ - δ̄‖`` at the end.
        relative: ``E / ‖δ‖``: from 1 on, the bound says nothing.
        outputs: Over ``‖f - f0‖``, the norm of the bounds ``|f - f0 - J0 δ| + ‖J0(x)‖ E`` of all outputs.
        same_label: Share of the examples to which the linearised run provably gives the same label.
        steps: Steps of the run.
        dropout: Whether it trained with dropout, which the linearised run has none of: the bound counts it in full.
        seconds_per_step: What recording took.
    """

    certified: bool
    reason: str | None = None
    parameters: float | None = None
    relative: float | None = None
    outputs: float | None = None
    same_label: float | None = None
    steps: int | None = None
    dropout: bool | None = None
    seconds_per_step: float | None = None


@dataclass(frozen=True)
class Certificate:
    """How linear a fine-tune was, on the evaluation examples; ``f̄ = f0 + J0 δ`` at the fine-tuned parameters.

    Attributes:
        nonlinearity: ``‖f - f̄‖ / ‖f - f0‖`` (theory.md P4), of centred logits.
        quantiles: Of the same for each example.
        change: ``‖f - f0‖ / √(n c)``, what training made of the outputs.
        displacement: ``‖δ‖``.
        label_agreement: Share of examples that f and f̄ give the same label; None for regression.
        divergence: Mean of ``KL(softmax f ‖ softmax f̄)`` in nats; None for regression.
        metric_name: What the metrics are.
        metrics: The metric ``before`` training, of the ``network`` and of its ``linearised`` model.
        layers: Each layer's part, where asked for.
        bound: The bound for recorded runs.
    """

    nonlinearity: float
    quantiles: dict[str, float]
    change: float
    displacement: float
    label_agreement: float | None
    divergence: float | None
    metric_name: str
    metrics: dict[str, float]
    layers: tuple[LayerLinearity, ...]
    bound: DistanceBound

    @property
    def verdict(self) -> str:
        """``lazy`` up to ``LAZY``, ``nearly linear`` up to ``NEARLY_LINEAR``, else ``not linear``; or ``unchanged``."""
        if self.change == 0:
            return "unchanged"
        if self.nonlinearity <= NEARLY_LINEAR:
            return "lazy" if self.nonlinearity <= LAZY else "nearly linear"
        return "not linear"

    @property
    def sentences(self) -> list[str]:
        """The verdict with the numbers behind it, and what is certified."""
        if self.change == 0:
            return ["Unchanged: the adapter does not change the outputs."]
        first = (
            f"{self.verdict.capitalize()}: the linearised model at the same parameters misses the fine-tuned outputs "
            f"by {self.nonlinearity:.2g} of what training changed in them (measured; up to {LAZY} is lazy, up to "
            f"{NEARLY_LINEAR} nearly linear)."
        )
        return [first, _about(self.bound)]

    def to_json(self) -> dict[str, Any]:
        """The content of ``certificate.json`` that is not provenance."""
        thresholds = {"lazy": LAZY, "nearly linear": NEARLY_LINEAR}
        return {"verdict": self.verdict, "sentences": self.sentences, "thresholds": thresholds} | asdict(self)


def certify(
    task: Task, adapter: Linearised | str | Path, *, per_layer: bool = False, progress: Progress | None = None
) -> Certificate:
    """Measure on the evaluation examples how linear a fine-tune was, by any loss and optimiser (theory.md P4).

    A run that ``foretune train --certify`` recorded also gets a bound on its distance from the linearised run (P3).
    Nothing is estimated: numbers are either measured at the given parameters or bounds. An adapter that cannot be read
    or is of another model is an ``InputError``, and so are outputs that are not finite.

    Args:
        task: Model and data.
        adapter: Its folder, or its linearised model as :func:`load_adapter` or :func:`linearise` makes it.
        per_layer: Also move every layer alone; three forward passes a layer.
        progress: Called with passes over the evaluation examples done and in all.
    """
    linear = adapter if isinstance(adapter, Linearised) else load_adapter(task, adapter).to(task.device)
    work = _Measurement(linear, task, progress or (lambda done, total: None), per_layer)
    folder = None if isinstance(adapter, Linearised) else Path(adapter)
    return work.certificate(folder)


def certify_run(
    run: str | Path,
    adapter: str | Path,
    directory: str | Path,
    *,
    per_layer: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Certify an adapter with the model and the evaluation data of a ``run.yaml``; writes ``certificate.json``."""
    started = time.perf_counter()
    directory, adapter = Path(directory), Path(adapter)
    with run_directory(directory):
        task = load_task(run)
        certificate = certify(task, adapter, per_layer=per_layer, progress=progress)
        result = result_of(adapter)
        inside = adapter.resolve().is_relative_to(directory.resolve())
        content = provenance(int(result.get("seed", 42)), time.perf_counter() - started, task.device) | {
            "name": result.get("candidate", adapter.resolve().name),
            "linearised": bool(result.get("linearised")),
            "adapter": str(adapter.resolve().relative_to(directory.resolve()) if inside else adapter),
            "examples": len(task.eval),
            **certificate.to_json(),
        }
        write_json(directory / "certificate.json", content)
    return content


class _Measurement:
    """Passes over the evaluation examples with parameters as they are, as they were, and layer by layer."""

    def __init__(self, linear: Linearised, task: Task, progress: Progress, per_layer: bool) -> None:
        self.linear, self.task, self.progress = linear, task, progress
        self.before = {name: nn.Parameter(x, requires_grad=False) for name, x in linear.initial().items()}
        self.layers = _layers(linear.trained) if per_layer else {}
        self.passes = 3 + 2 * len(self.layers)
        self.done = 0
        self.f0 = self.outputs(linear.network, self.before)
        self.f = self.outputs(linear.network)
        self.f_linear = self.outputs(linear)
        if not bool(self.f.isfinite().all() and self.f_linear.isfinite().all()):
            raise InputError("adapter", "outputs of the fine-tuned model are not finite", "train it at a lower rate")

    def outputs(self, model: nn.Module, values: dict[str, nn.Parameter] | None = None) -> Float[Tensor, "n c"]:
        with replaced(self.linear.network, values or {}):
            found = all_outputs(model, self.task, self.task.eval)
        self.done += 1
        self.progress(self.done, self.passes)
        return found

    def certificate(self, folder: Path | None) -> Certificate:
        f0, f, f_linear = (centred(outputs) for outputs in (self.f0, self.f, self.f_linear))
        each = torch.tensor(list(map(nonlinearity, f, f_linear, f0)), dtype=torch.float64)
        classes = self.task.loss == "cross_entropy"
        log_p, log_q = self.f.log_softmax(1), self.f_linear.log_softmax(1)
        metrics = {"before": self.f0, "network": self.f, "linearised": self.f_linear}
        return Certificate(
            nonlinearity=nonlinearity(f, f_linear, f0),
            quantiles={f"{q:g}": float(each.quantile(q)) for q in QUANTILES},
            change=float((f - f0).square().mean().sqrt()),
            displacement=float(self.linear.displacement().norm()),
            label_agreement=float((self.f.argmax(1) == self.f_linear.argmax(1)).double().mean()) if classes else None,
            divergence=float((log_p.exp() * (log_p - log_q)).sum(1).mean()) if classes else None,
            metric_name=self.task.metric_name,
            metrics={
                name: self.task.compute_metrics(outputs, self.task.eval["labels"])["eval_metric"]
                for name, outputs in metrics.items()
            },
            layers=tuple(self.layer(layer, names) for layer, names in self.layers.items()),
            bound=self.bound(folder),
        )

    def layer(self, layer: str, names: Sequence[str]) -> LayerLinearity:
        still = {name: value for name, value in self.before.items() if name not in names}
        f0, f, f_linear = (
            centred(outputs)
            for outputs in (self.f0, self.outputs(self.linear.network, still), self.outputs(self.linear, still))
        )
        whole = float((centred(self.f_linear) - f0).norm())
        theta = self.linear.theta()
        moved = math.hypot(*(float((theta[name].detach() - self.before[name]).norm()) for name in names))
        share = float((f_linear - f0).norm()) / whole if whole else 0.0
        return LayerLinearity(layer, moved, share, nonlinearity(f, f_linear, f0))

    def bound(self, folder: Path | None) -> DistanceBound:
        path = folder / GAP_FILE if folder else None
        if path is None or not path.exists():
            return DistanceBound(False, "its training was not recorded (foretune train --certify, with optim: sgd)")
        record = read_json(path, "train the adapter again")
        if not record["certified"]:
            return DistanceBound(False, record["reason"])
        delta = self.linear.displacement()
        if record["parameters"] != digest(delta, self.linear.start):
            return DistanceBound(False, f"{GAP_FILE} was recorded for other parameters than these")
        gap, moved = float(record["gap"]), float(delta.norm())
        several = batches(self.linear, self.task, self.task.eval)
        sizes = torch.cat([self.linear.jacobian(batch)[1].norm(dim=2).double().cpu() for batch in several])
        remainders = (self.f - self.f_linear).abs()
        bound = Bound(gap, certified=True)
        pairs = zip(remainders.flatten().tolist(), sizes.flatten().tolist(), strict=True)
        limits = torch.tensor([output_gap(bound, *pair).value for pair in pairs], dtype=torch.float64).view_as(self.f)
        changed = float((self.f - self.f0).norm())
        return DistanceBound(
            certified=True,
            parameters=gap,
            relative=gap / moved if moved else None,
            outputs=float(limits.norm()) / changed if changed else None,
            same_label=_same_label(self.f, limits) if self.task.loss == "cross_entropy" else None,
            steps=len(record["steps"]),
            dropout=record["dropout"],
            seconds_per_step=record["seconds_per_step"],
        )


def _same_label(outputs: Float[Tensor, "n c"], limits: Float[Tensor, "n c"]) -> float:
    """Share of examples whose largest output stays the largest whatever outputs within the limits are."""
    top = outputs.argmax(1, keepdim=True)
    least = (outputs - limits).gather(1, top)
    others = (outputs + limits).scatter(1, top, -math.inf).amax(1, keepdim=True)
    return float((least > others).double().mean())


def _layers(names: Sequence[str]) -> dict[str, list[str]]:
    """Names of parameters by the layer that they adapt, or, for modules trained in full, by the module."""
    layers: dict[str, list[str]] = {}
    for name in names:
        adapted, *rest = re.split(r"\.(?:lora_\w+|modules_to_save)\.", name, maxsplit=1)
        layers.setdefault(base_name(adapted if rest else name.rpartition(".")[0]), []).append(name)
    return layers


def _about(bound: DistanceBound) -> str:
    """What a bound says, no more."""
    if not bound.certified:
        return f"Nothing is certified about the run: {bound.reason}."
    text = (
        f"Certified: after its {bound.steps} steps the run is within {bound.parameters:.3g} of the linearised model "
        f"trained on the same batches{' without dropout' if bound.dropout else ''}"
    )
    if bound.relative is None or bound.relative >= 1:
        return f"{text}; it did not move farther than that itself, so this says nothing."
    return f"{text}, {bound.relative:.2g} times the distance it moved."
