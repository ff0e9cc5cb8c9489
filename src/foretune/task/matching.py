"""Finds the modules that a candidate adapts: peft adapts a copy of the model without weights."""

import copy
import warnings
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from torch import nn
from transformers import PreTrainedModel

from foretune.errors import InputError
from foretune.task.candidate import Candidate
from foretune.task.module_names import HEAD_NAMES, adaptable, check_names, layer_numbers
from foretune.task.problems import error_text


@dataclass(frozen=True)
class AdaptedModule:
    """A module that gets an adapter.

    Attributes:
        name: Name of the module in the model without adapters.
        num_inputs: Number of input features.
        num_outputs: Number of output features.
        rank: Rank of the adapter.
        num_parameters: Number of parameters of the adapter.
    """

    name: str
    num_inputs: int
    num_outputs: int
    rank: int
    num_parameters: int


@dataclass(frozen=True)
class Adaptation:
    """What peft adapts and trains in a model.

    Attributes:
        modules: The adapted modules.
        heads: Names of the modules that are trained in full, usually the head.
        num_trainable: Number of trained parameters.
    """

    modules: tuple[AdaptedModule, ...]
    heads: tuple[str, ...]
    num_trainable: int


def adaptation(model: PreTrainedModel, candidate: Candidate, where: str) -> Adaptation:
    """Find what a candidate's adapter config adapts in a model; both stay unchanged, and no weights are copied.

    Args:
        model: The model without adapters.
        candidate: The candidate.
        where: Name of the candidate's peft section in messages, such as ``run.yaml: peft``.

    Returns:
        The adapted modules, the modules that are trained in full, and the number of trained parameters.

    Raises:
        InputError: A target matches no module, a layer does not exist, or peft refuses the config.
    """
    config = candidate.peft_config()
    config.init_lora_weights = True  # initialisations that need data or weights do not change shapes
    targets = config.target_modules
    if targets is not None and not targets:
        raise InputError(f"{where}.target_modules", "it is empty", f"target some of: {', '.join(adaptable(model))}")
    names = [name for name, _ in model.named_modules()]
    check_names(model, config, where)
    _check_replication(config.layer_replication, len(layer_numbers(names)), where)
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings(action="ignore"):
            adapted = get_peft_model(skeleton(model), config, low_cpu_mem_usage=True)
    except (ValueError, TypeError, RuntimeError, AttributeError, ImportError) as error:
        reason = error_text(error)
        if "layers_to_transform" in reason or "layers_pattern" in reason:
            layers = sorted(layer_numbers(names))
            problem = f"none of the layers {config.layers_to_transform} has the target modules"
            raise InputError(f"{where}.layers_to_transform", problem, _layers_advice(layers)) from error
        if "modules_to_save cannot be applied" in reason:  # DistilBERT's pre_classifier ends in "classifier"
            heads = [name for name in names if "." not in name and name.endswith(HEAD_NAMES)]
            problem = f"{_listed(targets)} also targets the head ({', '.join(heads)}), which is trained in full"
            raise InputError(
                f"{where}.target_modules",
                problem,
                f"leave it out, or add exclude_modules: [{', '.join(heads)}]",
            ) from error
        if config.layer_replication and "layers attribute" in reason:
            problem = f"peft repeats layers of Llama, BERT and Falcon only, not of {type(model).__name__}"
            raise InputError(f"{where}.layer_replication", problem, "leave it out") from error
        if "target" in reason.lower():
            problem = "not given, which peft refuses" if targets is None else f"{_listed(targets)} cannot be adapted"
            problem += f" ({reason[:300].rstrip('.')})"
            fix = f"target some of: {', '.join(adaptable(model))}; or all-linear"
            raise InputError(f"{where}.target_modules", problem, fix) from error
        raise InputError(
            where, f"peft refuses it ({reason[:300].rstrip('.')})", "change the keys that are named there"
        ) from error
    result = _adaptation_of(adapted)
    _check_layers(config.layers_to_transform, result, names, where)
    return result


def skeleton(model: nn.Module) -> nn.Module:
    """Copy a tree of modules without its weights: tensors of the copy have shapes but no storage (device ``meta``)."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _adaptation_of(adapted: PeftModel) -> Adaptation:
    """Read the adapted modules and the trained parameters of a peft model."""
    modules, heads = [], []
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            heads.append(name)
        if isinstance(module, LoraLayer) and isinstance(module, nn.Module):
            count = sum(p.numel() for key, p in module.named_parameters() if "lora_" in key)
            sizes = int(module.in_features or 0), int(module.out_features or 0)
            modules.append(AdaptedModule(name, *sizes, int(module.r["default"]), count))
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    return Adaptation(tuple(modules), tuple(heads), trainable)


def _check_layers(layers: list[int] | int | None, result: Adaptation, names: list[str], where: str) -> None:
    """Check that every layer in ``layers_to_transform`` has an adapted module.

    Raises:
        InputError: A layer has no adapted module.
    """
    if layers is None:
        return
    reached = layer_numbers(module.name for module in result.modules)
    missing = sorted(set([layers] if isinstance(layers, int) else layers) - reached)
    if missing:
        problem = f"layer {', '.join(map(str, missing))} has no target module"
        raise InputError(f"{where}.layers_to_transform", problem, _layers_advice(sorted(layer_numbers(names))))


def _check_replication(ranges: object, layers: int, where: str) -> None:
    """Check that the layers to repeat exist, which peft does not check.

    Raises:
        InputError: A range of layers is not valid.
    """
    for layer_range in ranges if isinstance(ranges, list) else ():
        pair = (
            isinstance(layer_range, list | tuple)
            and len(layer_range) == 2
            and all(isinstance(end, int) for end in layer_range)
        )
        if not pair or not 0 <= layer_range[0] < layer_range[1] <= layers:
            fix = (
                f"write pairs of the first layer and the one after the last, from 0 to {layers}, such as [0, {layers}]"
            )
            raise InputError(f"{where}.layer_replication", f"found {layer_range}", fix)


def _listed(targets: set[str] | list[str] | str | None) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets or ()))}]"


def _layers_advice(layers: list[int]) -> str:
    if layers:
        return f"write layers from {layers[0]} to {layers[-1]}"
    return "leave layers_to_transform out: the layers of this model have no numbers"
