"""In which type long products are taken: rows that are kept in bfloat16 need none that are more exact than they."""

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def product_dtype(stored: torch.dtype, device: torch.device | str = "cpu") -> torch.dtype:
    """In which type to multiply long matrices of stored rows: bfloat16 where the device can, else float32."""
    if stored == torch.float64:
        return stored
    if torch.device(device).type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and stored == torch.bfloat16 else torch.float32


@contextmanager
def short_products(stored: torch.dtype) -> Generator[None]:
    """Inside the block products of long float32 matrices may be as inexact as the rows that they are made of.

    Those of rows kept in bfloat16 then go to the faster library, which rounds their factors only where the processor
    gains from it. Many small products are slower there.
    """
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # set for some backends only, by somebody who knows why
        before = None
    if stored != torch.bfloat16 or before is None:
        yield
        return
    torch.set_float32_matmul_precision("medium")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class ShortLayers(TorchFunctionMode):
    """Inside the block linear layers take ``short_products``, and gradients go down through them in ``product_dtype``.

    Normalisations, attention and the stream between layers stay as they are, and so do products on a GPU on the way up,
    which would be less exact there.

    Args:
        stored: How rows are kept that come of it: nothing changes where these are no shorter than the network's.
        exact: Modules whose layers stay as they are.
        device: Where the network is.
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
        """Of ``linear(a, W, b)`` and, as GPT-2's layers have it, ``addmm(b, a, W')``."""
        layer = _layer(function, args)
        if layer is None or id(layer[1]) in self.exact or self.product.itemsize >= layer[1].dtype.itemsize:
            return function(*args, **kwargs or {})
        source, parameter = layer
        with nullcontext() if parameter.is_cuda else short_products(self.stored):
            output = function(*args, **kwargs or {})
        trained = any(each.requires_grad for each in args if isinstance(each, Tensor) and each is not source)
        if trained or not source.requires_grad:
            return output
        weight = parameter if function is nn.functional.linear else parameter.T
        return _WeightIn.apply(source, output.detach(), weight.to(self.product))


def _layer(function: Callable[..., Any], args: Sequence[Any]) -> tuple[Tensor, Tensor] | None:
    """What enters the linear layer that is called, and its parameter; None: another function."""
    if function is nn.functional.linear and len(args) > 1:
        return args[0], args[1]
    if function is torch.addmm and len(args) == 3:
        return args[1], args[2]
    return None


class _WeightIn(torch.autograd.Function):
    """What a layer computed, as before; its gradient goes down through its weight (o i) in the type of that."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, output: Tensor, weight: Tensor) -> Tensor:
        """The output."""
        ctx.weight = weight
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Float[Tensor, "... i"] | None, ...]:
        """The gradient at the source."""
        (gradient,) = grads
        return (gradient.to(ctx.weight.dtype) @ ctx.weight).to(gradient.dtype), None, None
