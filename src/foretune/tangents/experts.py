"""Mixtures of experts: blocks in which a router chooses, for every token, the experts that process it.

Experts are parallel networks with weights of their own. Tangents describe the experts that were chosen before training.
Training changes the input of the router, which may then choose other experts. Derivatives do not show which.
"""

from collections.abc import Iterator, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from foretune.task.module_names import HEAD_NAMES

ROUTER, EXPERTS = "router", "experts"
ROUTERS = ("router", "gate")  # names of routers in models


def mixture_of_experts(model: nn.Module) -> tuple[str, ...]:
    """Return the names of the modules that route tokens to experts. Most models have none.

    Such a module has two children: experts and a router. Experts are a list of modules of one type, or a module whose
    parameters have an axis for the expert. A router has a weight with one row per expert.

    Args:
        model: A model with or without adapters.
    """
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in routers_and_experts(model)))


def routers_and_experts(model: nn.Module) -> Mapping[str, str]:
    """Map the name of every router to ``"router"``, and the name of every module of experts to ``"experts"``."""
    return {
        f"{name}.{child}".lstrip("."): kind
        for name, module in model.named_modules()
        for child, kind in _classified(module)
    }


def _classified(block: nn.Module) -> Iterator[tuple[str, str]]:
    """Yield the names and the kinds of the children that are experts or their router."""
    children = {name: _unwrapped(child) for name, child in block.named_children() if name not in HEAD_NAMES}
    for name, child in children.items():
        others = {key: other for key, other in children.items() if key != name and not isinstance(other, nn.Embedding)}
        if "xpert" in type(child).__name__ and set(ROUTERS) & set(others):
            routers = [key for key in others if key in ROUTERS]
        else:
            count = _num_experts(child)
            routers = [key for key, other in others.items() if count > 1 and _is_router(other, count)]
        if routers:
            yield name, EXPERTS
        for router in routers:
            yield router, ROUTER


def _num_experts(module: nn.Module) -> int:
    """The number of experts in a module; 0 if the module cannot hold experts."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return len(module) if len({type(child) for child in module.children()}) == 1 else 0
    if type(module).__module__.startswith("torch."):  # weights of convolutions have three axes too
        return 0
    stacked = [len(parameter) for parameter in module.parameters(recurse=False) if parameter.dim() == 3]
    return max(stacked, default=0)


def _is_router(module: nn.Module, count: int) -> bool:
    """Whether the only matrix among the module's weights has one row per expert."""
    weights = [parameter for name, parameter in module.named_parameters() if "lora_" not in name]
    matrices = [weight for weight in weights if weight.dim() == 2]
    return len(matrices) == 1 and len(matrices[0]) == count


def _unwrapped(module: nn.Module) -> nn.Module:
    """The module without its adapters."""
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
