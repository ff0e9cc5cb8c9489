"""A check for users and tests: the neural tangent kernel (NTK) of any peft model, by foretune's own engine."""

import functools
from collections.abc import Mapping

import torch
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.kernel.blocks import CallRows, Factors, layer_kernels
from foretune.tangents.adapters import base_name, lora_layers, read_adapters
from foretune.tangents.head import outputs_of
from foretune.tangents.hooks import Call, Rows, evaluating, layer_gradients, token_mask
from foretune.tangents.one_by_one import layer_gradients_one_by_one, one_by_one_plan, singles


def ntk(peft_model: PeftModel, batch: Mapping[str, Tensor]) -> Float[Tensor, "N N"]:
    """Compute the empirical NTK of a peft model's logits over its LoRA parameters (docs/theory.md section 0).

    ``K[i c + a, j c + b] = Σ_p ∂f_a(x_i)/∂p ∂f_b(x_j)/∂p``. It is example-major, uses raw logits (not centred), and has
    no normalising constant. The parameters p are the factors A and B of the active adapters. A head that is trained in
    full is not included. The model is evaluated without dropout in any mode, and its state is restored.

    Args:
        peft_model: A model with plain LoRA or rsLoRA adapters on linear layers, at any values of A and B.
        batch: The inputs of the model. ``labels`` are ignored. Tokens whose ``attention_mask`` is 0 are padding.

    Returns:
        The kernel, in the model's type and on its device. For half-precision models products are computed in float32.

    Raises:
        InputError: The model has no active adapters, or adapters are merged or disabled.
    """
    layers = lora_layers(peft_model)
    adapters = read_adapters(peft_model)
    if not adapters:
        raise InputError(
            "peft_model", "it has no active LoRA adapters", "add an adapter, or activate one with set_adapter"
        )
    inactive = [name for name, layer in layers.items() if layer.merged or layer.disable_adapters]
    if inactive:
        raise InputError(
            "peft_model",
            f"adapters are merged or disabled in {', '.join(inactive)}",
            "call unmerge_adapter() or enable the adapters",
        )
    with evaluating(peft_model):
        outputs, calls, inputs, gradients = _gradients(peft_model, layers, batch)
    dtype = torch.promote_types(outputs.dtype, torch.float32)
    everything = torch.arange(len(outputs))
    kernel = torch.zeros(outputs.numel(), outputs.numel(), dtype=dtype, device=outputs.device)
    for layer, factors in Factors.by_layer(adapters).items():
        rows = [
            CallRows(inputs[call.position], gradients[call.position], call.row_counts, everything)
            for call in calls
            if base_name(call.layer) == layer
        ]
        if rows:
            for _, block in layer_kernels(rows, factors, everything, dtype=dtype):
                kernel += block
    return kernel.to(outputs.dtype)


def _gradients(
    model: nn.Module, layers: Mapping[str, nn.Module], batch: Mapping[str, Tensor]
) -> tuple[Tensor, list[Call], list[Tensor], list[Tensor]]:
    """Outputs, layer calls, inputs and gradients of a batch; one example at a time if the model needs that."""
    room = Rows(_device(model))
    forward = functools.partial(outputs_of, model)
    example = next(singles(batch))
    plan = one_by_one_plan(model, layers, forward, example, example)
    if plan is not None:
        return layer_gradients_one_by_one(model, layers, forward, singles(batch), plan, room)
    return layer_gradients(model, layers, lambda: forward(batch), token_mask(batch), room)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
