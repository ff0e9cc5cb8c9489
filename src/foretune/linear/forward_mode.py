"""Forward-mode derivatives of whole models, with any kind of attention.

In forward mode PyTorch carries a tangent, the derivative in one direction, beside every value
(``torch.autograd.forward_ad``). Its fused attention kernels do not support this. Here the values come from the kernel
that the model uses. The tangents come from attention in plain operations, so gradients can flow back through them.
"""

import functools
import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._ops import OpOverload, OpOverloadPacket
from torch.autograd import forward_ad
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from foretune.errors import InputError

LOSSES = (
    functional.cross_entropy,
    functional.mse_loss,
    functional.l1_loss,
    functional.smooth_l1_loss,
    functional.huber_loss,
    functional.binary_cross_entropy_with_logits,
)
FIX = "load the model with attn_implementation='sdpa' or 'eager', and without layers that use their own kernels"


@contextmanager
def tangents() -> Generator[None]:
    """Carry tangents inside the block, also through fused attention.

    A loss inside the block is computed from value plus tangent. Gradients are recorded inside the block if they are
    recorded outside.

    Raises:
        InputError: An operation has no forward derivative.
    """
    recording = torch.is_grad_enabled()
    # inference mode would drop the tangents without an error
    with torch.inference_mode(False), torch.set_grad_enabled(recording), forward_ad.dual_level(), _Rules():
        try:
            yield
        except NotImplementedError as error:
            reason = str(error).splitlines()[0]
            if "forward" not in reason:
                raise
            raise InputError("model", f"an operation has no forward derivative ({reason.rstrip('.')})", FIX) from error


@contextmanager
def replaced(model: nn.Module, values: Mapping[str, Tensor]) -> Generator[None]:
    """Replace parameters by other tensors inside the block. A shared parameter is replaced everywhere.

    Args:
        model: The model.
        values: The tensors, by parameter name.
    """
    stand_ins = {id(model.get_parameter(name)): value for name, value in values.items()}
    places = [
        (module._parameters, key, parameter)
        for module in model.modules()
        for key, parameter in module._parameters.items()
        if id(parameter) in stand_ins
    ]
    try:
        for parameters, key, parameter in places:
            parameters[key] = stand_ins[id(parameter)]  # type: ignore[assignment]
        yield
    finally:
        for parameters, key, parameter in places:
            parameters[key] = parameter


class _Rules(TorchFunctionMode):
    """Replace PyTorch's own rules for linear layers, fused attention and losses."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return linear(*args, **kwargs)
        if func is functional.scaled_dot_product_attention:
            values = func(*map(_value, args), **{name: _value(item) for name, item in kwargs.items()})
            return _dual(values, forward_ad.unpack_dual(attention(*args, **kwargs)).tangent)
        if func is Tensor.requires_grad_:  # peft calls it on embeddings, for gradient checkpointing
            return args[0]
        if func in LOSSES:
            return func(*map(first_order, args), **{name: first_order(item) for name, item in kwargs.items()})
        result = func(*args, **kwargs)
        custom = isinstance(func, OpOverload | OpOverloadPacket) and not str(func).startswith("aten.")
        if custom and any(map(_moves, tree_leaves((args, kwargs)))):  # PyTorch would drop their tangents silently
            if any(isinstance(x, Tensor) and x.is_floating_point() and not _moves(x) for x in tree_leaves(result)):
                raise InputError("model", f"the operation {func} has no forward derivative", FIX)
        return result


def first_order(item: Any) -> Any:
    """Value plus tangent of a tensor. Anything else is returned unchanged."""
    if not isinstance(item, Tensor):
        return item
    value, tangent = forward_ad.unpack_dual(item)
    return value if tangent is None else value + tangent


def _value(item: Any) -> Any:
    return forward_ad.unpack_dual(item).primal if isinstance(item, Tensor) else item


def _moves(item: Any) -> bool:
    return isinstance(item, Tensor) and forward_ad.unpack_dual(item).tangent is not None


def _dual(value: Tensor, tangent: Tensor | None) -> Tensor:
    return value if tangent is None else forward_ad.make_dual(value, tangent)


def linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x W' + b`` with the tangent ``dx W' + x dW' + db``.

    Terms without a tangent are skipped, where PyTorch would multiply by zeros.
    """
    (x, dx), (w, dw) = forward_ad.unpack_dual(input), forward_ad.unpack_dual(weight)
    b, db = (None, None) if bias is None else forward_ad.unpack_dual(bias)
    value, terms = functional.linear(x, w, b), []
    if dx is not None:
        terms.append(functional.linear(dx, w))
    if dw is not None:
        terms.append(functional.linear(x, dw))
    if db is not None:
        terms.append(db.expand_as(value))
    return _dual(value, functools.reduce(torch.add, terms) if terms else None)


def attention(
    query: Float[Tensor, "*b h t d"],
    key: Float[Tensor, "*b g s d"],
    value: Float[Tensor, "*b g s e"],
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Float[Tensor, "*b h t e"]:
    """Attention, ``softmax(scale · q k' + mask) v``, in plain operations.

    The arguments are those of PyTorch's fused function. A query that may attend to nothing gives 0, as in the fused
    kernels.

    Raises:
        InputError: The dropout probability is above 0. Its random mask would differ from that of the fused kernel.
    """
    if dropout_p > 0:
        raise InputError(
            "model", f"its attention uses dropout with probability {dropout_p} in eval mode", "set that dropout to 0"
        )
    if enable_gqa:
        times = query.shape[-3] // key.shape[-3]
        key, value = (x.repeat_interleave(times, -3) for x in (key, value))
    scores = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.mT
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
    if attn_mask is None:
        return scores.softmax(-1) @ value
    if attn_mask.dtype == torch.bool:
        attn_mask = torch.zeros_like(attn_mask, dtype=scores.dtype).masked_fill(~attn_mask, -math.inf)
    idle = (attn_mask == -math.inf).all(-1, keepdim=True)
    return ((scores + attn_mask.masked_fill(idle, 0.0)).softmax(-1) @ value).masked_fill(idle, 0.0)
