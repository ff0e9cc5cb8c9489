"""Proximal fine-tuning: weight decay toward the values that training starts from (theory.md section 1).

Before each step of the optimiser, with the learning rate η that the step has and the gradient g that was taken at θ,

    θ ← θ - min(ηλ, 1) (θ - θ0)        then the optimiser's own step with g

as AdamW decays toward 0: decoupled from momentum and adaptive scaling. With plain SGD this is gradient descent on the
penalised loss, ``θ - η(g + λ(θ - θ0))``, exactly. The min keeps a λ beyond 1/η from overshooting: it holds θ at θ0.

λ is in the convention of the loss that is trained, which is a **mean**: the objective is ``loss + (λ/2) ‖θ - θ0‖²``.
``foretune.linear.sum_strength`` gives the λ of the sum convention with the same minimiser.
"""

import math
from collections.abc import Iterable
from typing import Any, TypeVar

import torch
from accelerate.optimizer import AcceleratedOptimizer
from jaxtyping import Float
from peft import LoraModel
from torch import Tensor, nn
from torch.optim import LBFGS, AdamW, Optimizer

from foretune.errors import InputError
from foretune.task.config import ProximalSpec
from foretune.task.problems import nearest

RULES = ("always", "selective")
SCOPES = ("global", "tensor")
ANCHOR = "proximal_anchor"  # θ0 in the optimiser's state of a parameter
STRENGTH = "proximal_strength"  # λ in a parameter group
RULE = "proximal_rule"  # of an optimiser, in its defaults

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def proximal(optimizer: AnyOptimizer, *, strength: float, rule: str = "always", scope: str = "global") -> AnyOptimizer:
    """Give an optimiser the proximal term ``θ ← θ - min(ηλ, 1) (θ - θ0)``, taken before each of its steps.

    It stays the same object, so schedulers, gradient scalers, accelerate and ``Trainer`` treat it as before. θ0 is a
    parameter's value at its first step with a gradient (for LoRA's A its random start, never 0). It is kept in the
    optimiser's state, one more copy of the trained parameters, and is saved and restored with it. Without a saved state
    the anchor is where training goes on. Copies and pickles of an optimiser lose the term, as they lose all hooks.

    The selective rule takes the term only where its step does not lead uphill, ``Σ ⟨g, ηλ(θ - θ0)⟩ ≥ 0``: with one
    rate and strength that is ``⟨∇R(θ), θ - θ0⟩ ≥ 0`` (arXiv:2602.08239 Eq. 8), and the loss never rises to first order.
    g is the gradient as it reaches the step. Clipping its norm and scaling the loss multiply it by a positive number,
    which leaves the sign alone; clipping each value may not. Steps that a gradient scaler skips apply nothing. Under
    data parallelism all processes take the same steps. Parameters sharded over processes (FSDP, ZeRO) are not
    supported.

    An argument that is none of those below is an ``InputError``, and so is an optimiser that takes several gradients a
    step (LBFGS), that accelerate has prepared already, or that has the term already.

    Args:
        optimizer: Any optimiser that takes one gradient a step. A parameter group with a ``proximal_strength`` of its
            own keeps it: 0 for a new head, whose random start is no pretrained value.
        strength: λ ≥ 0 in the mean convention: the penalty ``(λ/2) ‖θ - θ0‖²`` is added to the loss that is trained.
        rule: ``always`` or ``selective``.
        scope: The selective sum runs over all parameters (``global``), or over each tensor for itself (``tensor``).

    Returns:
        The optimiser.

    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> sgd = proximal(torch.optim.SGD([weight], lr=0.1), strength=0.5)
    >>> for _ in range(2):  # to 2 - 0.1, and from there another 0.1 (1 - 0.5 * 0.1)
    ...     weight.grad = torch.ones(1)
    ...     sgd.step()
    >>> round(weight.item(), 6)
    1.805
    """
    _check(optimizer, strength, rule, scope)
    optimizer.defaults |= {STRENGTH: strength, RULE: rule}
    for group in optimizer.param_groups:
        _check_strength(group.setdefault(STRENGTH, strength), f"{STRENGTH} of a parameter group")
    term = _Term(rule, scope)
    optimizer.register_step_pre_hook(term.before)
    optimizer.register_step_post_hook(term.after)
    optimizer.register_load_state_dict_pre_hook(_check_saved)
    return optimizer


class ProximalAdamW(AdamW):
    """AdamW with the proximal term: ``θ ← θ - min(ηλ, 1) (θ - θ0)``, then AdamW's step; see :func:`proximal`.

    Args:
        params: Parameters or groups; a group may have a ``proximal_strength`` of its own.
        lr: η.
        strength: λ ≥ 0 in the mean convention, decoupled as ``weight_decay`` is and to be compared with it.
        rule: ``always`` or ``selective``.
        scope: ``global`` or ``tensor``.
        weight_decay: AdamW's pull toward 0; none unlike there, because this one pulls toward θ0.
        adamw: AdamW's other arguments.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float | Tensor = 1e-3,
        *,
        strength: float,
        rule: str = "always",
        scope: str = "global",
        weight_decay: float = 0.0,
        **adamw: Any,
    ) -> None:
        super().__init__(params, lr, weight_decay=weight_decay, **adamw)
        proximal(self, strength=strength, rule=rule, scope=scope)


def anchor_adapters(optimizer: Optimizer, model: nn.Module, spec: ProximalSpec) -> None:
    """Put the term on the adapters of a model, and not on modules trained in full, such as a new head.

    Groups that hold both are split in two: do it before the first step.

    Raises:
        InputError: The optimiser has none of the adapters' parameters.
    """
    factors = {parameter for name, parameter in model.named_parameters() if LoraModel.prefix in name}
    groups = []
    for group in optimizer.param_groups:
        for strength, chosen in ((spec.strength, True), (0.0, False)):
            params = [parameter for parameter in group["params"] if (parameter in factors) is chosen]
            if params:
                groups.append(group | {"params": params, STRENGTH: strength})
    if not any(group[STRENGTH] for group in groups):
        found = f"{type(optimizer).__name__} does not step the adapters itself, so the proximal term cannot act on them"
        raise InputError("training.optim", found, "write adamw_torch, or leave the proximal section out")
    optimizer.param_groups[:] = groups
    proximal(optimizer, strength=spec.strength, rule=spec.rule, scope=spec.scope)


class _Term:
    """The hooks of one optimiser around its steps."""

    def __init__(self, rule: str, scope: str) -> None:
        self.rule, self.scope = rule, scope
        self.starts: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate the closure, if the step has one, and apply the term."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:  # its gradient is that of the parameters as they are now
            with torch.enable_grad():
                loss = closure()
            args, kwargs = args[:1], kwargs | {"closure": lambda: loss}
        pulls = self.pulls(optimizer)
        if self.rule == "selective":
            pulls = _downhill(list(pulls), self.scope)
        for parameter, _, pull in pulls:
            parameter.sub_(pull)
        return args, kwargs

    def pulls(self, optimizer: Optimizer) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Each parameter with the loss's gradient and its pull, min(ηλ, 1) (θ - θ0); those at their start have none."""
        taken = 1 - getattr(optimizer, "found_inf", 0)  # a fused optimiser skips a scaler's steps inside itself
        for group in optimizer.param_groups:
            rate = min(group["lr"] * group[STRENGTH], 1.0) * taken
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                if ANCHOR not in optimizer.state[parameter]:
                    self.starts[parameter] = parameter.clone()
                elif group[STRENGTH]:
                    uphill = -gradient if group.get("maximize") else gradient
                    yield parameter, uphill, rate * (parameter - optimizer.state[parameter][ANCHOR])

    def after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep new anchors, now that the optimiser has made its own state: most make it only where there is none."""
        for parameter, start in self.starts.items():
            optimizer.state[parameter][ANCHOR] = start
        self.starts.clear()


def _downhill(pulls: list[tuple[Tensor, Tensor, Tensor]], scope: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """The pulls, made zero where ``⟨gradient, pull⟩ < 0``; nothing waits for a device."""
    slopes = [_inner(gradient, pull) for _, gradient, pull in pulls]
    if scope == "global" and slopes:
        total = torch.stack([slope.to(slopes[0].device) for slope in slopes]).sum()
        slopes = [total.to(slope.device) for slope in slopes]
    for (parameter, gradient, pull), slope in zip(pulls, slopes, strict=True):
        yield parameter, gradient, pull * (slope >= 0)


def _inner(gradient: Tensor, pull: Tensor) -> Float[Tensor, ""]:
    """Their inner product, summed in single precision or better."""
    wide = torch.promote_types(pull.dtype, torch.float32)
    return (gradient.to(wide) * pull.to(wide)).sum()


def _check(optimizer: Optimizer, strength: float, rule: str, scope: str) -> None:
    """Refuse what the term cannot act on.

    Raises:
        InputError: There is such a thing.
    """
    _check_strength(strength, "strength")
    for name, value, valid in (("rule", rule, RULES), ("scope", scope, SCOPES)):
        if value not in valid:
            raise InputError(name, f"it is {value!r}", nearest(value, valid))
    if isinstance(optimizer, AcceleratedOptimizer):
        raise InputError("optimizer", "accelerate has prepared it already", "call proximal before prepare")
    if isinstance(optimizer, LBFGS):
        raise InputError("optimizer", "LBFGS takes several gradients a step", "use one that takes one, such as AdamW")
    if STRENGTH in optimizer.defaults:
        raise InputError("optimizer", "it has the proximal term already", "call proximal once")


def _check_strength(strength: float, where: str) -> None:
    """Refuse a strength that is none.

    Raises:
        InputError: It is.
    """
    if not (strength >= 0 and math.isfinite(strength)):
        raise InputError(where, f"it is {strength}", "pass a number of at least 0")


def _check_saved(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Refuse the state of an optimiser without the term: it has no anchor.

    Raises:
        InputError: It is one.
    """
    if any(STRENGTH not in group for group in state["param_groups"]):
        raise InputError(
            "optimizer state",
            "it was saved without the proximal term, so it has no anchor",
            "load it before calling proximal, which then anchors where training goes on",
        )
