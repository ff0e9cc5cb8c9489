"""The precision of large matrix products.

Rows that are stored in bfloat16 are rounded, so products with them need no more precision than that. On devices with
fast bfloat16 products this saves up to half of the time.
"""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def product_dtype(stored: torch.dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """The type in which to multiply large matrices of stored rows.

    It is float64 for rows in float64, bfloat16 for rows in bfloat16 if the device supports it, and float32 otherwise.

    Args:
        stored: The type in which rows are stored.
        device: The device that computes the product.
    """
    if stored == torch.float64:
        return stored
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and stored == torch.bfloat16 else torch.float32


@contextmanager
def short_products(stored: torch.dtype) -> Generator[None]:
    """Inside the block float32 products of large matrices may be as inexact as the stored rows.

    For rows in bfloat16 this sets torch's float32 matmul precision to ``medium``. Products then go to a faster library,
    which rounds factors to bfloat16 only on processors that gain from it. Many small products would be slower there.

    Args:
        stored: The type in which rows are stored. Nothing changes for types other than bfloat16.
    """
    try:
        previous = torch.get_float32_matmul_precision()
    except RuntimeError:  # the user set precisions for single backends: leave them
        previous = None
    if stored != torch.bfloat16 or previous is None:
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(previous)


class ShortLayers(TorchFunctionMode):
    """Inside the block linear layers compute faster and less exactly.

    Forward products use ``short_products``, and gradients pass through the layers' weights in ``product_dtype``.
    Normalisations, attention and values between layers keep their precision. Forward products on a GPU keep theirs too,
    because ``short_products`` would lose more there.

    Args:
        stored: The type in which rows are stored. Layers change only if its ``product_dtype`` is less precise than
            their weights.
        exact: Modules whose layers are computed exactly.
        device: The device of the network.
    """

    def __init__(
        self, stored: torch.dtype, exact: Iterable[nn.Module] = (), device: torch.device | str = "cpu"
    ) -> None:
        super().__init__()
        self.stored, self.product = stored, product_dtype(stored, device)
        self.exact = {id(parameter) for module in exact for parameter in module.parameters()}

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Replace ``linear(a, W, b)``, and ``addmm(b, a, W')`` as GPT-2's layers use it."""
        operands = _layer_operands(function, args)
        if operands is None or id(operands[1]) in self.exact or self.product.itemsize >= operands[1].dtype.itemsize:
            return function(*args, **kwargs or {})
        source, parameter = operands
        with nullcontext() if parameter.is_cuda else short_products(self.stored):
            output = function(*args, **kwargs or {})
        trained = any(x.requires_grad for x in args if isinstance(x, Tensor) and x is not source)
        if trained or not source.requires_grad:
            return output
        weight = parameter if function is nn.functional.linear else parameter.T
        return _BackwardWith.apply(source, output.detach(), weight.to(self.product))


def _layer_operands(function: Callable[..., Any], args: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """The input and the weight of a call of a linear layer; None for other functions."""
    if function is nn.functional.linear and len(args) > 1:
        return args[0], args[1]
    if function is torch.addmm and len(args) == 3:
        return args[1], args[2]
    return None


class _BackwardWith(torch.autograd.Function):
    """Returns a layer's output unchanged. The gradient at its input is computed with the given weight, in its type."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """Return the output. ``weight`` has the shape (o, i)."""
        ctx.weight = weight
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Float[Tensor, "... i"] | None, ...]:
        """Compute the gradient at the layer's input."""
        (gradient,) = grads
        return (gradient.to(ctx.weight.dtype) @ ctx.weight).to(gradient.dtype), None, None
