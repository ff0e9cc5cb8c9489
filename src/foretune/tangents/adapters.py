"""The LoRA adapters of a peft model: their factors, scaling and dropout.

LoRA changes a layer's weight by ``dW = scaling * B A``. A (r, i) and B (o, r) are called the factors.
"""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.adalora import AdaLoraLayer
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from torch import Tensor, nn

from foretune.errors import InputError
from foretune.tangents.experts import routers_and_experts
from foretune.tangents.rules import supported
from foretune.task.module_names import folded


@dataclass(frozen=True)
class Adapter:
    """The LoRA update ``dW = scaling * B A`` of one layer.

    Attributes:
        layer: Name of the layer in the model without adapters.
        name: Name of the factors' weights in the peft model, with ``{}`` in place of ``lora_A`` or ``lora_B``.
        a: Factor A.
        b: Factor B.
        scaling: ``lora_alpha / r`` for LoRA, ``lora_alpha / sqrt(r)`` for rsLoRA.
        dropout: Probability with which inputs of the adapter are dropped during training.
    """

    layer: str
    name: str
    a: Float[Tensor, "r i"]
    b: Float[Tensor, "o r"]
    scaling: float
    dropout: float


def read_adapters(model: nn.Module) -> list[Adapter]:
    """Read the active adapters of a peft model, with the current values of their factors.

    Raises:
        InputError: An adapter is not plain LoRA on a linear layer.
    """
    adapters: list[Adapter] = []
    unsupported = _other_methods(model)
    experts = routers_and_experts(model)
    for path, layer in lora_layers(model).items():
        for key in layer.active_adapters:
            if expert := next((name for name in experts if f"{path}.".startswith(f"{name}.")), None):
                unsupported[expert] = f"{experts[expert]} of a mixture of experts"
            elif isinstance(layer, AdaLoraLayer):
                unsupported[path] = "AdaLoRA"
            elif key in layer.lora_variant:
                unsupported[path] = type(layer.lora_variant[key]).__name__.removesuffix("Variant")
            elif key in layer.lora_A and not supported(layer):
                unsupported[path] = f"LoRA on {type(layer.get_base_layer()).__name__}"
            elif key in layer.lora_A and layer.lora_B[key].bias is not None:
                unsupported[path] = "lora_bias"
            elif key in layer.lora_A:
                a, b = layer.lora_A[key].weight, layer.lora_B[key].weight
                dropout = getattr(layer.lora_dropout[key], "p", 0.0)
                adapters.append(
                    Adapter(
                        base_name(path),
                        f"{path}.{{}}.{key}.weight",
                        a,
                        b,
                        float(layer.scaling[key]),
                        float(dropout),
                    )
                )
            elif key in layer.lora_embedding_A:
                unsupported[path] = "LoRA on an embedding"
    if unsupported:
        kinds: dict[str, list[str]] = {}
        for path, kind in unsupported.items():
            kinds.setdefault(kind, []).append(base_name(path))
        listed = "; ".join(f"{kind} ({', '.join(folded(names))})" for kind, names in kinds.items())
        fix = "use plain LoRA or rsLoRA on linear layers" + (", named in target_modules" if experts else "")
        raise InputError("peft", f"foretune does not support these adapters: {listed}", fix)
    return adapters


def _other_methods(model: nn.Module) -> dict[str, str]:
    """The layers with active adapters of methods other than LoRA, and the names of these methods."""
    return {
        name: type(module).__module__.split(".")[-2]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, LoraLayer) and module.active_adapters
    }


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers with LoRA adapters by their name in the peft model, without layers in fully trained modules."""
    trained = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not name.startswith(tuple(f"{prefix}." for prefix in trained))
    }


def base_name(path: str) -> str:
    """The name of a layer in the model without adapters."""
    return path.removeprefix("base_model.model.")


@contextmanager
def adapted(model: nn.Module, config: LoraConfig) -> Generator[PeftModel]:
    """Put new adapters around a model and remove them when the block ends.

    ``get_peft_model`` draws them from torch's global generator.
    """
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    peft_model = get_peft_model(model, config)
    try:
        yield peft_model
    finally:
        peft_model.unload()
        for name, parameter in model.named_parameters():  # peft froze the parameters
            parameter.requires_grad_(trainable[name])


def check_forecastable(config: LoraConfig, where: str = "peft") -> None:
    """Check that a config trains only plain LoRA factors, and that training starts from the pretrained model.

    Args:
        config: The config.
        where: The place that messages name.

    Raises:
        InputError: The config uses DoRA, trains biases, embeddings or single parameters, repeats layers, or has an
            initialisation that changes the pretrained weights.
    """
    if config.use_dora:
        raise InputError(f"{where}.use_dora", "DoRA cannot be forecast yet", "leave it out; foretune train accepts it")
    if config.bias != "none":
        raise InputError(f"{where}.bias", f"it is {config.bias!r}, and trained biases cannot be forecast", "write none")
    if config.trainable_token_indices:
        raise InputError(f"{where}.trainable_token_indices", "trained embeddings cannot be forecast", "leave it out")
    if config.layer_replication:
        problem = "it repeats layers, and only the network without repeated layers can be forecast"
        raise InputError(f"{where}.layer_replication", problem, "leave it out; foretune train accepts it")
    if config.target_parameters:
        parameters = ", ".join(sorted(config.target_parameters))
        problem = f"adapters on single parameters ({parameters}) cannot be forecast, only adapters on layers"
        fix = "leave it out and name layers in target_modules; foretune train accepts it"
        raise InputError(f"{where}.target_parameters", problem, fix)
    if config.init_lora_weights not in {True, "gaussian"}:
        raise InputError(
            f"{where}.init_lora_weights",
            f"{config.init_lora_weights!r} changes the pretrained weights, or the model's outputs before training",
            "write true or gaussian to forecast; foretune train accepts it as it is",
        )


def draw_adapters(model: nn.Module, config: LoraConfig, generator_state: Tensor) -> list[Adapter]:
    """Draw the adapters that ``get_peft_model`` makes when torch's generator is in a given state.

    The model and the generator are left unchanged.
    """
    check_forecastable(config)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator_state)
        with adapted(model, config) as peft_model:
            return [
                Adapter(x.layer, x.name, _cpu_copy(x.a), _cpu_copy(x.b), x.scaling, x.dropout)
                for x in read_adapters(peft_model)
            ]


def _cpu_copy(factor: Tensor) -> Tensor:
    """Copy a factor to the CPU, where runs are simulated."""
    return factor.detach().to("cpu", copy=True)
