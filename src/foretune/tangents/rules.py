"""The layer types that are supported: a registry with one rule per type.

A rule is a function that returns the input and output width of a layer.
"""

from collections.abc import Callable, Mapping
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
    """Register a rule for layer types, so that they can be adapted in forecasts.

    The output of such a layer must be affine in its weight, token by token: ``z = W a + b``, where ``a`` runs along the
    last axis of the input. Subclasses inherit the rule.

    >>> from torch import nn
    >>> @layer_rule(nn.LazyLinear)
    ... def lazy(layer):
    ...     return Sizes(layer.in_features, layer.out_features)

    Args:
        *types: The layer types.

    Returns:
        A decorator for the rule.
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
    """Whether a rule exists for a layer's type or a base class of it. For a LoRA layer the wrapped layer counts."""
    return _rule(layer) is not None


def sizes(layer: nn.Module) -> Sizes:
    """The input and output width of a supported layer."""
    rule = _rule(layer)
    assert rule is not None
    return rule(_wrapped(layer))


def _rule(layer: nn.Module) -> Rule | None:
    if isinstance(layer, ParamWrapper):  # LoRA on a single parameter, without a layer
        return None
    return next((_RULES[base] for base in type(_wrapped(layer)).__mro__ if base in _RULES), None)


def _wrapped(layer: nn.Module) -> nn.Module:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def check_supported(layers: Mapping[str, nn.Module]) -> None:
    """Check that all layers have a rule.

    Raises:
        InputError: Some layers have no rule. The message names all of them.
    """
    missing = {name: type(_wrapped(layer)) for name, layer in layers.items() if not supported(layer)}
    if missing:
        types = ", ".join(sorted({f"{kind.__module__}.{kind.__name__}" for kind in missing.values()}))
        raise InputError(
            "target_modules",
            f"foretune has no rule for the layers {', '.join(sorted(missing))} (types: {types})",
            f"target layers of type {', '.join(sorted(kind.__name__ for kind in _RULES))}, "
            "or register a rule with foretune.layer_rule",
        )
