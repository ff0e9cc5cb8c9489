"""Which layer types have tangents: a registry of rules, one per layer type."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import nn
from transformers.pytorch_utils import Conv1D

from foretune.errors import InputError


class Sizes(NamedTuple):
    """Widths of a layer's input (i) and output (o)."""

    inputs: int
    outputs: int


Rule = Callable[[nn.Module], Sizes]
_RULES: dict[type[nn.Module], Rule] = {}


def layer_rule(*types: type[nn.Module]) -> Callable[[Rule], Rule]:
    """Register how to read the sizes of layers of these types.

    A layer qualifies if its output is affine in its weight, token by token: ``z = W a + b`` with rows ``a`` of the
    input's last axis. Subclasses inherit the rule.

    >>> from torch import nn
    >>> @layer_rule(nn.LazyLinear)
    ... def lazy(layer):
    ...     return Sizes(layer.in_features, layer.out_features)
    """

    def register(rule: Rule) -> Rule:
        for layer_type in types:
            _RULES[layer_type] = rule
        return rule

    return register


@layer_rule(nn.Linear)
def _linear(layer: nn.Module) -> Sizes:
    return Sizes(layer.in_features, layer.out_features)  # type: ignore[arg-type]


@layer_rule(Conv1D)
def _conv1d(layer: nn.Module) -> Sizes:
    rows, columns = layer.weight.shape  # type: ignore[misc]
    return Sizes(rows, columns)


def supported(layer: nn.Module) -> bool:
    """Whether a rule exists for this layer's type or one of its bases; a LoRA layer counts as what it wraps."""
    return _rule(layer) is not None


def sizes(layer: nn.Module) -> Sizes:
    """Widths of a supported layer."""
    rule = _rule(layer)
    assert rule is not None
    return rule(_wrapped(layer))


def _rule(layer: nn.Module) -> Rule | None:
    if isinstance(layer, ParamWrapper):  # LoRA on a bare parameter: no layer runs
        return None
    return next((_RULES[base] for base in type(_wrapped(layer)).__mro__ if base in _RULES), None)


def _wrapped(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def check_supported(layers: Mapping[str, nn.Module]) -> None:
    """Raise one error that names every layer without a rule.

    Raises:
        InputError: Some layer's type has no rule.
    """
    missing = {name: type(_wrapped(layer)) for name, layer in layers.items() if not supported(layer)}
    if missing:
        kinds = ", ".join(sorted({f"{kind.__module__}.{kind.__name__}" for kind in missing.values()}))
        raise InputError(
            "target_modules",
            f"no tangent rule for {_listing(missing)} (types: {kinds})",
            f"target layers of type {', '.join(sorted(kind.__name__ for kind in _RULES))}, "
            "or register a rule with foretune.tangents.layer_rule",
        )


def _listing(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))
