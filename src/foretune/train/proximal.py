"""Proximal fine-tuning: weight decay toward the values that training starts from (docs/theory.md section 1).

The gradient g is computed at θ. Then every step of the optimiser, with learning rate η, becomes

    θ ← θ - min(ηλ, 1) (θ - θ0)        followed by the optimiser's own step with g

This is decoupled from momentum and adaptive scaling, as the decay of AdamW toward 0 is. With plain SGD it is exactly
gradient descent on the penalised loss, ``θ - η(g + λ(θ - θ0))``. The minimum prevents overshooting: with λ above 1/η,
θ is reset to θ0.

λ follows the convention of the trained loss, which is a **mean**: the objective is ``loss + (λ/2) ‖θ - θ0‖²``.
``foretune.linear.sum_strength`` converts it to the λ of the sum convention that has the same minimiser.
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
ANCHOR = "proximal_anchor"  # key of θ0 in the optimiser's state of a parameter
STRENGTH = "proximal_strength"  # key of λ in a parameter group
RULE = "proximal_rule"  # key of the rule in the optimiser's defaults

AnyOptimizer = TypeVar("AnyOptimizer", bound=Optimizer)


def proximal(optimizer: AnyOptimizer, *, strength: float, rule: str = "always", scope: str = "global") -> AnyOptimizer:
    """Add the proximal term ``θ ← θ - min(ηλ, 1) (θ - θ0)`` to an optimiser; it acts before every step.

    The optimiser stays the same object, so schedulers, gradient scalers, accelerate and ``Trainer`` treat it as before.
    θ0, the *anchor*, is the value of a parameter at its first step with a gradient. For LoRA's A that is its random
    start, never 0. The anchor is part of the optimiser's state: it takes one more copy of the trained parameters, and
    is saved and restored with the state. Without a saved state, the anchor is the value where training continues.
    Copies and pickles of an optimiser lose the term, as they lose all hooks.

    The rule ``selective`` applies the term only if it does not lead uphill, ``Σ ⟨g, ηλ(θ - θ0)⟩ ≥ 0``. With one
    learning rate and strength that is ``⟨∇R(θ), θ - θ0⟩ ≥ 0`` (arXiv:2602.08239 Eq. 8), and the term never raises the
    loss, to first order. g is the gradient as it reaches the step. Clipping its norm and scaling the loss do not change
    the sign; clipping single values may. A step that a gradient scaler skips does not apply the term. Under data
    parallelism all processes take the same steps. Parameters that are sharded over processes (FSDP, ZeRO) are not
    supported.

    An invalid argument raises an ``InputError``. So does an optimiser that needs several gradients per step (LBFGS),
    that accelerate has prepared already, or that has the term already.

    Args:
        optimizer: Any optimiser that needs one gradient per step. A parameter group may have a ``proximal_strength`` of
            its own, such as 0 for a new head, whose random start is not a pretrained value.
        strength: λ ≥ 0 in the mean convention: the penalty ``(λ/2) ‖θ - θ0‖²`` is added to the mean loss.
        rule: ``always`` or ``selective``.
        scope: Whether the sum of the selective rule runs over all parameters (``global``) or over one tensor at a time
            (``tensor``).

    Returns:
        The optimiser.

    >>> weight = torch.nn.Parameter(torch.tensor([2.0]))
    >>> sgd = proximal(torch.optim.SGD([weight], lr=0.1), strength=0.5)
    >>> for _ in range(2):  # 2 - 0.1 = 1.9, then 1.9 + 0.05 * 0.1 - 0.1
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
        lr: The learning rate η.
        strength: λ ≥ 0 in the mean convention. It is decoupled, as ``weight_decay`` is, so the two have the same scale.
        rule: ``always`` or ``selective``.
        scope: ``global`` or ``tensor``.
        weight_decay: AdamW's pull toward 0. The default is 0, unlike AdamW's, because the term pulls toward θ0.
        adamw: Other arguments of AdamW.
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
    """Add the term to the adapters of a model, but not to modules trained in full, such as a new head.

    Parameter groups that contain both are split in two, so call it before the first step.

    Args:
        optimizer: The optimiser of the model.
        model: The model with adapters.
        spec: Strength, rule and scope of the term.

    Raises:
        InputError: The optimiser does not have the parameters of the adapters.
    """
    factors = {parameter for name, parameter in model.named_parameters() if LoraModel.prefix in name}
    groups = []
    for group in optimizer.param_groups:
        for strength, chosen in ((spec.strength, True), (0.0, False)):
            params = [parameter for parameter in group["params"] if (parameter in factors) is chosen]
            if params:
                groups.append(group | {"params": params, STRENGTH: strength})
    if not any(group[STRENGTH] for group in groups):
        problem = (
            f"{type(optimizer).__name__} does not step the adapters itself, so the proximal term cannot act on them"
        )
        raise InputError("training.optim", problem, "write adamw_torch, or leave the proximal section out")
    optimizer.param_groups[:] = groups
    proximal(optimizer, strength=spec.strength, rule=spec.rule, scope=spec.scope)


class _Term:
    """The hooks that apply the term around the steps of an optimiser."""

    def __init__(self, rule: str, scope: str) -> None:
        self.rule, self.scope = rule, scope
        self.starts: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Evaluate the closure, if the step has one, and apply the term."""
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        if closure is not None:  # the gradient must be computed before the term moves the parameters
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
        """Yield parameters with the gradient of the loss and the pull min(ηλ, 1) (θ - θ0).

        A parameter at its first step has no pull, and only its start is remembered.
        """
        not_skipped = 1 - getattr(optimizer, "found_inf", 0)  # a fused optimiser itself skips the steps of a scaler
        for group in optimizer.param_groups:
            rate = min(group["lr"] * group[STRENGTH], 1.0) * not_skipped
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
        """Store new anchors, after the step: most optimisers initialise their state only if it is empty."""
        for parameter, start in self.starts.items():
            optimizer.state[parameter][ANCHOR] = start
        self.starts.clear()


def _downhill(pulls: list[tuple[Tensor, Tensor, Tensor]], scope: str) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
    """Set the pulls to zero where ``⟨gradient, pull⟩ < 0``, without waiting for the device."""
    slopes = [_inner(gradient, pull) for _, gradient, pull in pulls]
    if scope == "global" and slopes:
        total = torch.stack([slope.to(slopes[0].device) for slope in slopes]).sum()
        slopes = [total.to(slope.device) for slope in slopes]
    for (parameter, gradient, pull), slope in zip(pulls, slopes, strict=True):
        yield parameter, gradient, pull * (slope >= 0)


def _inner(gradient: Tensor, pull: Tensor) -> Float[Tensor, ""]:
    """The inner product, summed in single precision or better."""
    wide = torch.promote_types(pull.dtype, torch.float32)
    return (gradient.to(wide) * pull.to(wide)).sum()


def _check(optimizer: Optimizer, strength: float, rule: str, scope: str) -> None:
    """Check the arguments of ``proximal``.

    Raises:
        InputError: An argument is invalid, or the term cannot be added to this optimiser.
    """
    _check_strength(strength, "strength")
    for name, value, valid in (("rule", rule, RULES), ("scope", scope, SCOPES)):
        if value not in valid:
            raise InputError(name, f"it is {value!r}", nearest(value, valid))
    if isinstance(optimizer, AcceleratedOptimizer):
        raise InputError("optimizer", "accelerate has prepared it already", "call proximal before prepare")
    if isinstance(optimizer, LBFGS):
        raise InputError(
            "optimizer", "LBFGS needs several gradients per step", "use an optimiser that needs one, such as AdamW"
        )
    if STRENGTH in optimizer.defaults:
        raise InputError("optimizer", "it has the proximal term already", "call proximal once")


def _check_strength(strength: float, where: str) -> None:
    """Check a strength.

    Raises:
        InputError: It is negative or not finite.
    """
    if not (strength >= 0 and math.isfinite(strength)):
        raise InputError(where, f"it is {strength}", "pass a number of at least 0")


def _check_saved(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Check the state that an optimiser is about to load.

    Raises:
        InputError: The state was saved without the term, so it has no anchor.
    """
    if any(STRENGTH not in group for group in state["param_groups"]):
        raise InputError(
            "optimizer state",
            "it was saved without the proximal term, so it has no anchor",
            "load it before calling proximal, which then anchors the parameters where training continues",
        )
