"""Slow reference Jacobians, with which tests compare the engine.

They are computed by ``torch.func.jacrev`` and share no code with the engine.
"""

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
    """Compute the Jacobian of the logits in every entry of the active LoRA factors, in float64.

    A copy of the model is evaluated with PyTorch's plain attention (``SDPBackend.MATH``), because ``vmap`` can batch
    the derivatives of all its operations.

    Args:
        peft_model: The model with its adapters.
        batch: The inputs of the model. Labels are ignored.

    Returns:
        The Jacobians by parameter name.
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
    """Compute the kernel ``J J'`` from the Jacobians J in all parameters, with rows in the order of the examples."""
    rows = torch.cat([value.flatten(2).flatten(0, 1) for value in jacobians.values()], 1)
    return rows @ rows.T
