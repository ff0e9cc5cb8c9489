"""The slow oracle: Jacobians by ``torch.func.jacrev``, which shares no code with the engine."""

import copy
from collections.abc import Mapping

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from torch.func import functional_call, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

_HEADS = (".modules_to_save.", ".original_module.")


def jacobian(peft_model: PeftModel, batch: Mapping[str, Tensor]) -> dict[str, Float[Tensor, "n c *shape"]]:
    """Jacobian of the logits in every entry of the active LoRA factors, by parameter name, in float64.

    A copy of the model is evaluated with PyTorch's plain attention (``SDPBackend.MATH``), whose operations all have
    derivatives that ``vmap`` can batch.
    """
    model = copy.deepcopy(peft_model).double().eval()
    active = tuple(f".{name}." for name in model.active_adapters)
    values = {name: value.detach() for name, value in model.named_parameters()}
    chosen = {
        name: value
        for name, value in values.items()
        if "lora_" in name and any(key in name for key in active) and not any(key in name for key in _HEADS)
    }
    inputs = {
        name: value.double() if value.is_floating_point() else value
        for name, value in batch.items()
        if name != "labels"
    }

    def logits(parameters: dict[str, Tensor]) -> Tensor:
        result: Tensor = functional_call(model, {**values, **parameters}, kwargs=inputs).logits
        return result

    with sdpa_kernel(SDPBackend.MATH):
        result: dict[str, Tensor] = jacrev(logits)(chosen)
    return result


def kernel(jacobians: Mapping[str, Float[Tensor, "n c *shape"]]) -> Float[Tensor, "N N"]:
    """``J J'`` over all parameters, example-major."""
    rows = torch.cat([value.flatten(2).flatten(0, 1) for value in jacobians.values()], 1)
    return rows @ rows.T
