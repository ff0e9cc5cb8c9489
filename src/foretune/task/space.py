"""Which fine-tunes could be made instead of the one that a file describes: where, how large and how fast."""

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
from foretune.task.naming import label, short, span

RATES = 3.0  # a whole step between learning rates
PLACES = ("target_modules", "layers_to_transform", "exclude_modules")
_LAYER = re.compile(r".*?\.(\d+)\.(.+)")


@dataclass(frozen=True, eq=False)
class Placement:
    """Where adapters go: what to call it, keys of a ``peft`` section, the modules that they reach, and parts of it."""

    label: str
    peft: dict[str, Any]
    modules: frozenset[str]
    halves: "tuple[Placement, ...]" = ()


@dataclass(frozen=True)
class Point:
    """A place, a rank, and a learning rate by the number of half steps that it is above the file's."""

    placement: Placement
    rank: int
    step: int


@dataclass(frozen=True)
class Space:
    """What may be chosen around a candidate.

    Attributes:
        base: The candidate.
        placements: Where adapters may go, its own place first.
        others: Candidates that compete, by what they are.
        layers: All modules that any of these reaches.
    """

    base: Candidate
    placements: tuple[Placement, ...]
    others: dict[str, Candidate]
    layers: frozenset[str]

    @property
    def own(self) -> Point:
        """The candidate itself."""
        return Point(self.placements[0], int(self.base.peft.r), 0)

    def rate(self, step: int) -> float:
        """A learning rate: the candidate's, or so many half steps above it, to two digits."""
        own = float(self.base.training.get("learning_rate", TrainingArguments.learning_rate))
        return own if step == 0 else float(f"{own * RATES ** (step / 2):.1e}")

    def candidate(self, point: Point) -> Candidate:
        """The candidate that a point stands for, one of the ``others`` if it is the same.

        Ranks keep the ratio of ``lora_alpha`` to ``r``, with rsLoRA, which scales by 1/√r, ``lora_alpha`` itself.
        """
        if point == self.own:
            return self.base
        base, peft, rate = self.base.peft, _keys(self.base) | point.placement.peft, self.rate(point.step)
        if point.rank != base.r:
            alpha = base.lora_alpha * (1.0 if base.use_rslora else point.rank / base.r)
            peft |= {"r": point.rank, "lora_alpha": int(alpha) if alpha == int(alpha) else alpha}
        name = f"{point.placement.label}-r{point.rank}-lr{short(rate)}"
        while name.lower() in {each.name.lower() for each in (self.base, *self.others.values())}:
            name += "+"
        training = self.base.training | ({"learning_rate": rate} if point.step else {})
        made = replace(self.base, name=name, peft=build_lora(peft), training=training)
        return self.others.get(_identity(made, point.placement.modules), made)


def around(model: PreTrainedModel, base: Candidate, others: Sequence[Candidate] = (), where: str = "peft") -> Space:
    """A candidate's own target modules, all linear ones, attention's and the MLPs', each also in half of the layers.

    A candidate that does not fit the model is an ``InputError``.

    Args:
        model: Without adapters.
        base: The candidate.
        others: Candidates that compete.
        where: How messages call the adapter's config.
    """
    peft = _keys(base)

    def reached(candidate: Candidate) -> frozenset[str]:
        return frozenset(each.name for each in adaptation(model, candidate, where).modules)

    def place(name: str, keys: dict[str, Any], halves: Iterable[Placement] = ()) -> Placement:
        return Placement(name, keys, reached(Candidate(name, build_lora(peft | keys))), tuple(halves))

    own, layers = peft.get("target_modules"), peft.get("layers_to_transform")
    unset = {key: None for key in PLACES[1:] if peft.get(key) is not None}
    kinds = {kind: unset | keys for kind, keys in _kinds(model)}
    first = place(label(own) if layers is None else f"{label(own)}-{span(layers)}", {})
    if isinstance(own, list) and layers is None:
        kinds = {first.label: {"target_modules": own}} | kinds
    found: list[Placement] = []
    parts = _halves(model)
    for name, keys in kinds.items():
        halves = [place(f"{name}-{span(part)}", keys | {"layers_to_transform": part}) for part in parts]
        kind = place(name, keys, halves)
        if kind.modules == first.modules:
            first = replace(first, halves=kind.halves)
        elif all(kind.modules != other.modules for other in found):
            found.append(kind)
    theirs = [(reached(each), each) for each in others]
    layers = frozenset().union(*(each.modules for each in (first, *found)), *(modules for modules, _ in theirs))
    return Space(base, (first, *found), {_identity(each, modules): each for modules, each in theirs}, layers)


def _identity(candidate: Candidate, modules: Iterable[str]) -> str:
    """What a candidate is, whatever its name and however its modules are written."""
    entry = candidate.to_json()
    peft = {key: value for key, value in entry["peft"].items() if key not in PLACES}
    return json.dumps([sorted(modules), entry | {"peft": peft}], sort_keys=True)


def _halves(model: nn.Module) -> list[list[int]]:
    """The lower and the upper half of the layers that ``layers_to_transform`` may choose; none of layers in layers."""
    found = _in_layers(model)
    if any(re.search(r"(^|\.)\d+\.", match.group(2)) for match in found):
        return []
    numbers = sorted({int(match.group(1)) for match in found})
    middle = len(numbers) // 2
    return [numbers[:middle], numbers[middle:]] if middle else []


def _kinds(model: nn.Module) -> Iterator[tuple[str, dict[str, Any]]]:
    """The linear modules of numbered layers, and those within and without attention."""
    linear = {match.group(2) for match in _in_layers(model)}
    attention = {name for name in linear if "att" in name.lower()}
    if linear:
        yield "all-linear", _targets(linear, set())
        for kind, chosen in (("attention", attention), ("mlp", linear - attention)):
            if chosen and chosen != linear:
                yield kind, _targets(chosen, linear - chosen)


def _targets(chosen: set[str], others: set[str]) -> dict[str, Any]:
    """Keys that reach the chosen modules and not the others, by names as short as that allows."""
    last = {name: name.rsplit(".", 1)[-1] for name in chosen}
    taken = {name.rsplit(".", 1)[-1] for name in others}
    targets = sorted({last[name] if last[name] not in taken else name for name in chosen})
    clash = sorted(name for name in others if any(name.endswith(f".{target}") for target in targets))
    return {"target_modules": targets} | ({"exclude_modules": clash} if clash else {})


def _in_layers(model: nn.Module) -> list[re.Match[str]]:
    """The linear modules of numbered layers: the number, and the name within the layer."""
    return [match for name in outside_head(model, nn.Linear, Conv1D) if (match := _LAYER.fullmatch(name))]


def _keys(candidate: Candidate) -> dict[str, Any]:
    """What a candidate's adapter differs from peft's defaults in."""
    return {key: value for key, value in candidate.peft_dict().items() if key != "type"}
