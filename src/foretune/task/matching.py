"""Which modules a candidate adapts, found by asking peft itself on a copy of the model without weights."""

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


@dataclass(frozen=True)
class AdaptedModule:
    """A module that gets an adapter: its name in the base model, its sizes, the adapter's rank and size."""

    name: str
    num_inputs: int
    num_outputs: int
    rank: int
    num_parameters: int


@dataclass(frozen=True)
class Adaptation:
    """What peft makes of a model: the adapted modules, the heads trained whole, all that trains."""

    modules: tuple[AdaptedModule, ...]
    heads: tuple[str, ...]
    num_trainable: int


def adaptation(model: PreTrainedModel, candidate: Candidate, where: str) -> Adaptation:
    """Match a candidate's config against a model; neither is changed and no weight is copied.

    Args:
        model: The model without adapters.
        candidate: Whose config is matched.
        where: How messages call the candidate's peft section, such as ``run.yaml: peft``.

    Raises:
        InputError: A target matches nothing, a layer does not exist, or peft refuses the combination.
    """
    config = candidate.peft_config()
    config.init_lora_weights = True  # data- and weight-dependent initialisations change no shape
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
        reason = " ".join(str(error).split())
        if "layers_to_transform" in reason or "layers_pattern" in reason:
            layers = sorted(layer_numbers(names))
            found = f"none of the layers {config.layers_to_transform} has the target modules"
            raise InputError(f"{where}.layers_to_transform", found, f"write {_span(layers)}") from error
        if "modules_to_save cannot be applied" in reason:  # DistilBERT's pre_classifier ends in "classifier"
            heads = [name for name in names if "." not in name and name.endswith(HEAD_NAMES)]
            found = f"{_listed(targets)} also targets the head ({', '.join(heads)}), which is trained whole"
            raise InputError(
                f"{where}.target_modules",
                found,
                f"leave it out, or add exclude_modules: [{', '.join(heads)}]",
            ) from error
        if config.layer_replication and "layers attribute" in reason:
            found = f"peft repeats layers of Llama, BERT and Falcon only, not of {type(model).__name__}"
            raise InputError(f"{where}.layer_replication", found, "leave it out") from error
        if "target" in reason.lower():
            shown = "not given" if targets is None else _listed(targets)
            found = f"{shown} cannot be adapted ({reason[:300].rstrip('.')})"
            fix = f"target some of: {', '.join(adaptable(model))}; or all-linear"
            raise InputError(f"{where}.target_modules", found, fix) from error
        raise InputError(where, f"peft refuses it ({reason[:300].rstrip('.')})", "change the keys it names") from error
    result = _read(adapted)
    _check_layers(config.layers_to_transform, result, names, where)
    return result


def skeleton(model: nn.Module) -> nn.Module:
    """A copy of the module tree whose tensors have shapes but no storage (device ``meta``)."""
    memo: dict[int, object] = {}
    for parameter in model.parameters():
        memo[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in model.buffers():
        memo[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(model, memo)


def _read(adapted: PeftModel) -> Adaptation:
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


def _check_layers(asked: list[int] | int | None, result: Adaptation, names: list[str], where: str) -> None:
    if asked is None:
        return
    reached = layer_numbers(module.name for module in result.modules)
    absent = sorted(set([asked] if isinstance(asked, int) else asked) - reached)
    if absent:
        found = f"layer {', '.join(map(str, absent))} has no such module"
        raise InputError(f"{where}.layers_to_transform", found, f"write {_span(sorted(layer_numbers(names)))}")


def _check_replication(ranges: object, layers: int, where: str) -> None:
    """See that the layers to repeat are there; peft does not look.

    Raises:
        InputError: They are not.
    """
    for span in ranges if isinstance(ranges, list) else ():
        pair = isinstance(span, list | tuple) and len(span) == 2 and all(isinstance(end, int) for end in span)
        if not pair or not 0 <= span[0] < span[1] <= layers:
            fix = f"write pairs of a first layer and the one behind the last, from 0 to {layers}, such as [0, {layers}]"
            raise InputError(f"{where}.layer_replication", f"found {span}", fix)


def _listed(targets: set[str] | list[str] | str | None) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets or ()))}]"


def _span(layers: list[int]) -> str:
    return f"layers from {layers[0]} to {layers[-1]}" if layers else "no layers_to_transform: this model numbers none"
