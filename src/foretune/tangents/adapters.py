"""What peft puts around a layer: the factors of a LoRA update, their scale and their dropout."""

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
from foretune.tangents.experts import routed
from foretune.tangents.rules import supported
from foretune.task.module_names import folded


@dataclass(frozen=True)
class Adapter:
    """One LoRA update ``dW = scaling * B A`` of one layer.

    Attributes:
        layer: Name of the layer in the model without adapters.
        name: Name of the wrapped layer's adapter in the peft model, up to the factors.
        a: Factor A.
        b: Factor B.
        scaling: ``lora_alpha / r``, or what the config makes of it (rsLoRA: ``lora_alpha / sqrt(r)``).
        dropout: Probability with which inputs are dropped while training.
    """

    layer: str
    name: str
    a: Float[Tensor, "r i"]
    b: Float[Tensor, "o r"]
    scaling: float
    dropout: float


def read_adapters(model: nn.Module) -> list[Adapter]:
    """The active adapters of a peft model, as they stand.

    Raises:
        InputError: Some adapter is not plain LoRA on a linear layer.
    """
    adapters: list[Adapter] = []
    others = _other_methods(model)
    parts = routed(model)
    for path, layer in lora_layers(model).items():
        for key in layer.active_adapters:
            if part := next((name for name in parts if f"{path}.".startswith(f"{name}.")), None):
                others[part] = f"{parts[part]} of a mixture of experts"
            elif isinstance(layer, AdaLoraLayer):
                others[path] = "AdaLoRA"
            elif key in layer.lora_variant:
                others[path] = type(layer.lora_variant[key]).__name__.removesuffix("Variant")
            elif key in layer.lora_A and not supported(layer):
                others[path] = f"LoRA on {type(layer.get_base_layer()).__name__}"
            elif key in layer.lora_A and layer.lora_B[key].bias is not None:
                others[path] = "lora_bias"
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
                others[path] = "LoRA on an embedding"
    if others:
        kinds: dict[str, list[str]] = {}
        for path, kind in others.items():
            kinds.setdefault(kind, []).append(base_name(path))
        listed = "; ".join(f"{kind} ({', '.join(folded(paths))})" for kind, paths in kinds.items())
        fix = "use plain LoRA or rsLoRA on linear layers" + (", named in target_modules" if parts else "")
        raise InputError("peft", f"there are no tangents for {listed}", fix)
    return adapters


def _other_methods(model: nn.Module) -> dict[str, str]:
    """The layers with active adapters of methods other than LoRA, and the name of the method."""
    return {
        name: type(module).__module__.split(".")[-2]
        for name, module in model.named_modules()
        if isinstance(module, BaseTunerLayer) and not isinstance(module, LoraLayer) and module.active_adapters
    }


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """The layers that carry LoRA adapters, by their name in the peft model, but none in a head trained in full."""
    heads = [name for name, module in model.named_modules() if isinstance(module, ModulesToSaveWrapper)]
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not name.startswith(tuple(f"{head}." for head in heads))
    }


def base_name(path: str) -> str:
    """A layer's name in the model without adapters."""
    return path.removeprefix("base_model.model.")


@contextmanager
def adapted(model: nn.Module, config: LoraConfig) -> Generator[PeftModel]:
    """The model with adapters drawn from torch's generator, as ``get_peft_model`` draws them; removed afterwards."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    peft_model = get_peft_model(model, config)
    try:
        yield peft_model
    finally:
        peft_model.unload()
        for name, parameter in model.named_parameters():  # peft freezes them
            parameter.requires_grad_(trainable[name])


def check_forecastable(config: LoraConfig, where: str = "peft") -> None:
    """See that a config trains only plain LoRA factors and starts from the pretrained function.

    Raises:
        InputError: It trains biases, tokens or bare parameters too, or its initialisation changes the weights.
    """
    if config.use_dora:
        raise InputError(f"{where}.use_dora", "DoRA cannot be forecast yet", "leave it out; foretune train takes it")
    if config.bias != "none":
        raise InputError(f"{where}.bias", f"it is {config.bias!r}, biases have no tangents", "write none")
    if config.trainable_token_indices:
        raise InputError(f"{where}.trainable_token_indices", "embeddings have no tangents", "leave it out")
    if config.layer_replication:
        found = "repeated layers make another network than the one that tangents are of"
        raise InputError(f"{where}.layer_replication", found, "leave it out; foretune train takes it")
    if config.target_parameters:
        found = (
            f"parameters without a layer of their own ({', '.join(sorted(config.target_parameters))}) have no tangents"
        )
        fix = "leave it out and name layers in target_modules; foretune train takes it"
        raise InputError(f"{where}.target_parameters", found, fix)
    if config.init_lora_weights not in {True, "gaussian"}:
        raise InputError(
            f"{where}.init_lora_weights",
            f"{config.init_lora_weights!r} changes the pretrained weights or the starting function",
            "write true or gaussian to forecast; foretune train takes it as it is",
        )


def draw_adapters(model: nn.Module, config: LoraConfig, generator_state: Tensor) -> list[Adapter]:
    """Copies of the adapters that ``get_peft_model`` makes when torch's generator is in this state."""
    check_forecastable(config)
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(generator_state)
        with adapted(model, config) as peft_model:
            return [
                Adapter(x.layer, x.name, _copied(x.a), _copied(x.b), x.scaling, x.dropout)
                for x in read_adapters(peft_model)
            ]


def _copied(factor: Tensor) -> Tensor:
    """A copy on the CPU, where runs are simulated."""
    return factor.detach().to("cpu", copy=True)
