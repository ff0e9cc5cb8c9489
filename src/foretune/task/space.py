"""The search space around a candidate: other target modules and layers, ranks, and learning rates."""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn
from transformers import PreTrainedModel, TrainingArguments
from transformers.pytorch_utils import Conv1D

from foretune.task.arguments import build_lora
from foretune.task.candidate import Candidate
from foretune.task.matching import adaptation
from foretune.task.module_names import outside_head
from foretune.task.naming import layers_label, rate_label, targets_label

RATES = 3.0  # the ratio of two learning rates that are a whole step apart
PLACE_KEYS = ("target_modules", "layers_to_transform", "exclude_modules")
_LAYER = re.compile(r".*?\.(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class Placement:
    """A choice of the modules that get adapters.

    Attributes:
        label: Its name, which becomes a part of candidates' names.
        peft: Keys of a ``peft`` section that choose the modules.
        modules: Names of the chosen modules.
        halves: The same choice in the lower and in the upper half of the layers.
    """

    label: str
    peft: dict[str, Any]
    modules: frozenset[str]
    halves: "tuple[Placement, ...]" = ()


@dataclass(frozen=True)
class Point:
    """A point of the search space.

    Attributes:
        placement: The modules that get adapters.
        rank: Rank of the adapters.
        step: The learning rate, as the number of half steps above the base candidate's.
    """

    placement: Placement
    rank: int
    step: int


@dataclass(frozen=True)
class Space:
    """The search space around a candidate.

    Attributes:
        base: The candidate.
        placements: The choices of modules, the candidate's own first.
        others: Further candidates of the file, by a key of their settings without the name.
        layers: Names of all modules that the placements and the other candidates adapt.
    """

    base: Candidate
    placements: tuple[Placement, ...]
    others: dict[str, Candidate]
    layers: frozenset[str]

    @property
    def own(self) -> Point:
        """The point of the base candidate."""
        return Point(self.placements[0], int(self.base.peft.r), 0)

    def rate(self, step: int) -> float:
        """The learning rate that is a number of half steps above the base candidate's, rounded to two digits.

        ``rate(step) = rate(0) · 3^(step/2)``.

        Args:
            step: Number of half steps; it may be negative.

        Returns:
            The learning rate.
        """
        own = float(self.base.training.get("learning_rate", TrainingArguments.learning_rate))
        return own if step == 0 else float(f"{own * RATES ** (step / 2):.1e}")

    def candidate(self, point: Point) -> Candidate:
        """Make the candidate of a point.

        If the rank changes, LoRA keeps the ratio of ``lora_alpha`` to ``r``. rsLoRA scales by 1/√r by itself, and keeps
        ``lora_alpha``.

        Args:
            point: The point.

        Returns:
            The candidate; the base or one of ``others`` if they have the same settings.
        """
        if point == self.own:
            return self.base
        base, peft, rate = self.base.peft, _keys(self.base) | point.placement.peft, self.rate(point.step)
        if point.rank != base.r:
            alpha = base.lora_alpha * (1.0 if base.use_rslora else point.rank / base.r)
            peft |= {"r": point.rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
        name = f"{point.placement.label}-r{point.rank}-lr{rate_label(rate)}"
        while name.lower() in {candidate.name.lower() for candidate in (self.base, *self.others.values())}:
            name += "+"
        training = self.base.training | ({"learning_rate": rate} if point.step else {})
        new = replace(self.base, name=name, peft=build_lora(peft), training=training)
        return self.others.get(_identity(new, point.placement.modules), new)


def around(model: PreTrainedModel, base: Candidate, others: Sequence[Candidate] = (), where: str = "peft") -> Space:
    """Make the search space around a candidate.

    Its placements are the candidate's own target modules, all linear modules, those of attention, and the others
    (mlp). Where possible, a placement also has its lower and upper half of the layers. A candidate that does not fit
    the model raises an ``InputError``.

    Args:
        model: The model without adapters.
        base: The candidate.
        others: Further candidates, which compete with those of the search.
        where: Name of the adapter config in messages.

    Returns:
        The search space.
    """
    peft = _keys(base)

    def adapted(candidate: Candidate) -> frozenset[str]:
        return frozenset(module.name for module in adaptation(model, candidate, where).modules)

    def placement(name: str, keys: dict[str, Any], halves: Iterable[Placement] = ()) -> Placement:
        return Placement(name, keys, adapted(Candidate(name, build_lora(peft | keys))), tuple(halves))

    own, layers = peft.get("target_modules"), peft.get("layers_to_transform")
    unset = {key: None for key in PLACE_KEYS[1:] if peft.get(key) is not None}
    kinds = {kind: unset | keys for kind, keys in _kinds(model)}
    own_label = targets_label(own)
    first = placement(own_label if layers is None else f"{own_label}-{layers_label(layers)}", {})
    if isinstance(own, list) and layers is None:
        kinds = {first.label: {"target_modules": own}} | kinds
    further: list[Placement] = []
    layer_halves = _halves(model)
    for name, keys in kinds.items():
        halves = [
            placement(f"{name}-{layers_label(half)}", keys | {"layers_to_transform": half}) for half in layer_halves
        ]
        kind = placement(name, keys, halves)
        if kind.modules == first.modules:
            first = replace(first, halves=kind.halves)
        elif all(kind.modules != other.modules for other in further):
            further.append(kind)
    placements = (first, *further)
    other_modules = [adapted(candidate) for candidate in others]
    by_identity = {
        _identity(candidate, modules): candidate for candidate, modules in zip(others, other_modules, strict=True)
    }
    all_modules = frozenset().union(*(choice.modules for choice in placements), *other_modules)
    return Space(base, placements, by_identity, all_modules)


def _identity(candidate: Candidate, modules: Iterable[str]) -> str:
    """A text that is equal for candidates with the same settings and adapted modules; names make no difference."""
    entry = candidate.to_json()
    peft = {key: value for key, value in entry["peft"].items() if key not in PLACE_KEYS}
    return json.dumps([sorted(modules), entry | {"peft": peft}], sort_keys=True)


def _halves(model: nn.Module) -> list[list[int]]:
    """The numbers of the lower and of the upper half of the layers; an empty list if layers contain numbered layers."""
    matches = _in_layers(model)
    if any(re.search(r"(^|\.)\d+\.", match.group(2)) for match in matches):
        return []
    numbers = sorted({int(match.group(1)) for match in matches})
    middle = len(numbers) // 2
    return [numbers[:middle], numbers[middle:]] if middle else []


def _kinds(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and peft keys for the linear modules of numbered layers: all, those of attention, and the others (MLP)."""
    linear = {match.group(2) for match in _in_layers(model)}
    attention = {name for name in linear if "att" in name.lower()}
    if linear:
        yield "all-linear", _targets(linear, set())
        for kind, chosen in (("attention", attention), ("mlp", linear - attention)):
            if chosen and chosen != linear:
                yield kind, _targets(chosen, linear - chosen)


def _targets(chosen: set[str], others: set[str]) -> dict[str, Any]:
    """Keys that choose some modules and exclude the others, with names as short as possible."""
    last = {name: name.rsplit(".", 1)[-1] for name in chosen}
    other_last = {name.rsplit(".", 1)[-1] for name in others}
    targets = sorted({last[name] if last[name] not in other_last else name for name in chosen})
    also_matched = sorted(name for name in others if any(name.endswith(f".{target}") for target in targets))
    return {"target_modules": targets} | ({"exclude_modules": also_matched} if also_matched else {})


def _in_layers(model: nn.Module) -> list[re.Match[str]]:
    """The linear modules of numbered layers; groups of a match are the layer's number and the name within the layer."""
    return [match for name in outside_head(model, nn.Linear, Conv1D) if (match := _LAYER.fullmatch(name))]


def _keys(candidate: Candidate) -> dict[str, Any]:
    """The keys of a candidate's ``peft`` section."""
    return {key: value for key, value in candidate.peft_dict().items() if key != "type"}
