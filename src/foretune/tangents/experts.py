"""Mixtures of experts: blocks in which a router chooses the weights that a token runs through.

Tangents are of the experts that were chosen before training. A run that moves what the router sees chooses other
experts, and no derivative tells which.
"""

from collections.abc import Iterator, Mapping

from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from foretune.task.module_names import HEAD_NAMES

ROUTER, EXPERTS = "router", "experts"
ROUTERS = ("router", "gate")  # what models call it


def mixture_of_experts(model: nn.Module) -> tuple[str, ...]:
    """The names of the modules that route tokens to experts, none for most models.

    They are recognised by what they hold: experts (parameters with an axis for them, or a list of alike modules) beside
    a router (a weight with a row for each of them).

    Args:
        model: With or without adapters.
    """
    return tuple(dict.fromkeys(name.rpartition(".")[0] for name in routed(model)))


def routed(model: nn.Module) -> Mapping[str, str]:
    """The routers and the experts of a model by name, and which of the two each is."""
    return {
        f"{name}.{child}".lstrip("."): kind for name, module in model.named_modules() for child, kind in _parts(module)
    }


def _parts(block: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of the children that are experts or their router."""
    children = {name: _base(child) for name, child in block.named_children() if name not in HEAD_NAMES}
    for name, child in children.items():
        others = {other: it for other, it in children.items() if other != name and not isinstance(it, nn.Embedding)}
        if "xpert" in type(child).__name__ and set(ROUTERS) & set(others):
            routers = [other for other in others if other in ROUTERS]
        else:
            count = _experts(child)
            routers = [other for other, it in others.items() if count > 1 and _routes(it, count)]
        if routers:
            yield name, EXPERTS
        for router in routers:
            yield router, ROUTER


def _experts(module: nn.Module) -> int:
    """How many experts a module holds, if it is one that holds experts; else 0."""
    if isinstance(module, nn.ModuleList | nn.ModuleDict):
        return len(module) if len({type(child) for child in module.children()}) == 1 else 0
    if type(module).__module__.startswith("torch."):  # convolutions have three axes too
        return 0
    stacked = [len(parameter) for parameter in module.parameters(recurse=False) if parameter.dim() == 3]
    return max(stacked, default=0)


def _routes(module: nn.Module, count: int) -> bool:
    """Whether a module, or the one layer in it, has a weight with a row for each expert."""
    weights = [parameter for name, parameter in module.named_parameters() if "lora_" not in name]
    matrices = [weight for weight in weights if weight.dim() == 2]
    return len(matrices) == 1 and len(matrices[0]) == count


def _base(module: nn.Module) -> nn.Module:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module
