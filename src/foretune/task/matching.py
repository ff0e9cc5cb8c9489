"""Which modules a candidate adapts, found by asking peft itself on a copy of the model without weights."""

import copy
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from peft.utils.constants import SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from foretune.errors import InputError
from foretune.task.candidate import Candidate
from foretune.task.problems import nearest

HEAD_NAMES = tuple(SEQ_CLS_HEAD_NAMES)


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
    if isinstance(targets, set):
        for target in sorted(targets):
            if not any(name == target or name.endswith(f".{target}") for name in names):
                found = f"no module of {type(model).__name__} is called {target!r}"
                raise InputError(f"{where}.target_modules", found, nearest(target, adaptable(model)))
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


def adaptable(model: nn.Module) -> list[str]:
    """The last names of the modules that LoRA can adapt, without the head's, each once."""
    names = outside_head(model, nn.Linear, Conv1D, nn.Embedding)
    return list(dict.fromkeys(name.rsplit(".", 1)[-1] for name in names))


def outside_head(model: nn.Module, *kinds: type[nn.Module]) -> list[str]:
    """The names of the modules of these kinds, without the head's."""
    named = (name for name, module in model.named_modules() if isinstance(module, kinds))
    return [name for name in named if not name.startswith(HEAD_NAMES)]


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


def layer_numbers(names: Iterable[str]) -> set[int]:
    """The numbers of the layers that these modules are in."""
    found = (re.search(r"\.(\d+)(\.|$)", name) for name in names)
    return {int(match.group(1)) for match in found if match}


def _check_layers(asked: list[int] | int | None, result: Adaptation, names: list[str], where: str) -> None:
    if asked is None:
        return
    reached = layer_numbers(module.name for module in result.modules)
    absent = sorted(set([asked] if isinstance(asked, int) else asked) - reached)
    if absent:
        found = f"layer {', '.join(map(str, absent))} has no such module"
        raise InputError(f"{where}.layers_to_transform", found, f"write {_span(sorted(layer_numbers(names)))}")


def _listed(targets: set[str] | list[str] | str | None) -> str:
    return targets if isinstance(targets, str) else f"[{', '.join(sorted(targets or ()))}]"


def _span(layers: list[int]) -> str:
    return f"layers from {layers[0]} to {layers[-1]}" if layers else "no layers_to_transform: this model numbers none"
