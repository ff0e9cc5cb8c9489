"""The search space around a candidate, compared with what peft adapts, on every architecture."""

import dataclasses
from itertools import combinations
from pathlib import Path

import pytest
from cases import lora_config
from helpers import KINDS, tiny_model, write_tiny_run
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn

from foretune.errors import InputError
from foretune.task import Candidate, build_candidates, load_config
from foretune.task.arguments import build_lora
from foretune.task.candidate import build_candidate, configuration, variation
from foretune.task.config import CandidateSpec, to_yaml
from foretune.task.space import Placement, Point, Space, _halves, around

OWN_TARGETS = {
    "gpt2": ["c_attn"],
    "distilbert": ["q_lin", "v_lin"],
    "bert": ["query", "value"],
    "roberta": ["query", "value"],
}


def space_of(kind: str, **keys: object) -> Space:
    peft = build_lora({"r": 4, "lora_alpha": 8, "target_modules": OWN_TARGETS.get(kind, ["q_proj", "v_proj"])} | keys)
    return around(tiny_model(kind), Candidate("base", peft, {"learning_rate": 1e-3}))


def all_placements(space: Space) -> list[Placement]:
    return [part for placement in space.placements for part in (placement, *placement.halves)]


@pytest.mark.parametrize("kind", KINDS)
def test_peft_adapts_the_modules_of_a_placement(kind: str) -> None:
    space = space_of(kind)
    for placement in all_placements(space):
        candidate = space.candidate(Point(placement, 2, 1))
        adapted = get_peft_model(tiny_model(kind), candidate.peft_config()).get_base_model()
        adapted_names = {name for name, module in adapted.named_modules() if isinstance(module, LoraLayer)}
        assert adapted_names == placement.modules, placement.label


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_modules_and_halves_of_layers_add_up_to_all_modules(kind: str) -> None:
    space = space_of(kind)
    named = {placement.label: placement for placement in space.placements}
    assert space.placements[0].modules < named["all-linear"].modules
    attention, mlp = named["attention"].modules, named["mlp"].modules
    in_layers = {name for name in named["all-linear"].modules if "pooler" not in name}
    assert attention | mlp == in_layers and not attention & mlp
    for placement in space.placements:
        assert frozenset().union(*(half.modules for half in placement.halves)) == placement.modules & in_layers
        assert not frozenset.intersection(*(half.modules for half in placement.halves))
    assert all(one.modules != other.modules for one, other in combinations(all_placements(space), 2))
    assert space.layers == named["all-linear"].modules


def test_a_choice_of_layers_or_a_pattern_gives_a_placement_without_halves() -> None:
    own = space_of("bert", layers_to_transform=[1]).placements[0]
    assert own.label == "query+value-layers1" and not own.halves and len(own.modules) == 2
    pattern = space_of("bert", target_modules=r".*\.query").placements[0]
    assert pattern.label == "query" and not pattern.halves
    whole = space_of("gpt2", target_modules="all-linear").placements
    assert [placement.label for placement in whole] == ["all-linear", "attention", "mlp"] and len(whole[0].halves) == 2


def test_there_are_no_halves_if_layers_contain_numbered_layers() -> None:
    class Block(nn.Module):
        def __init__(self, inner: bool) -> None:
            super().__init__()
            linear = nn.Linear(2, 2)
            self.layer = nn.ModuleList([nn.ModuleDict({"linear": linear})]) if inner else linear

    for inner, expected in ((True, []), (False, [[0], [1, 2]])):
        model = nn.ModuleDict({"block": nn.ModuleList([Block(inner) for _ in range(3)])})
        assert _halves(model) == expected


@pytest.mark.parametrize(("rslora", "alpha"), [(False, 32), (True, 8)])
def test_other_ranks_keep_the_scaling_and_rates_change_in_half_steps(rslora: bool, alpha: int) -> None:
    space = space_of("bert", use_rslora=rslora, lora_dropout=0.1)
    assert space.candidate(space.own) is space.base
    changed = space.candidate(dataclasses.replace(space.own, rank=16, step=-1))
    assert (changed.peft.r, changed.peft.lora_alpha, changed.peft.use_rslora) == (16, alpha, rslora)
    assert changed.peft.lora_dropout == pytest.approx(0.1) and changed.training == {"learning_rate": 5.8e-4}
    assert changed.name == "query+value-r16-lr5.8e-4"
    assert [space.rate(step) for step in (-2, 0, 2, 4)] == [3.3e-4, 1e-3, 3e-3, 9e-3]


def test_a_point_with_the_settings_of_a_candidate_gives_that_candidate() -> None:
    base = Candidate("base", lora_config("bert", r=4, lora_alpha=8, target_modules=["query"]), {"learning_rate": 1e-3})
    config = LoraConfig(r=1, lora_alpha=2, target_modules=r".*(query|key|value|attention.output.dense)")
    same = Candidate("same", config, {"learning_rate": 1e-3})
    other = Candidate("mlp-r1-lr1e-3", LoraConfig(r=1, lora_alpha=4, target_modules=["key"]), {"learning_rate": 1e-3})
    bare = dataclasses.replace(base, peft=LoraConfig(r=4, lora_alpha=8, target_modules=["query"]))
    space = around(tiny_model("bert"), bare, [same, other])
    named = {placement.label: placement for placement in space.placements}
    assert space.candidate(Point(named["attention"], 1, 0)) is same
    assert space.candidate(Point(named["attention"], 1, 1)).name == "attention-r1-lr1.7e-3"
    assert space.candidate(Point(named["mlp"], 1, 0)).name == "mlp-r1-lr1e-3+", "names are not used twice"


def test_targets_that_do_not_exist_raise_an_input_error() -> None:
    with pytest.raises(InputError, match=r"run\.yaml: peft\.target_modules"):
        around(tiny_model("bert"), Candidate("base", LoraConfig(target_modules=["q_proj"])), where="run.yaml: peft")


def test_the_candidate_of_every_point_can_be_written_and_read_again(tmp_path: Path) -> None:
    own = {"exclude_modules": ["layer.0.attention.self.query"], "lora_dropout": 0.1}
    config = load_config(write_tiny_run(tmp_path, peft=own, proximal={"strength": 0.5}))
    base = build_candidate(config, CandidateSpec(name="base"))
    space = around(tiny_model("bert"), base)
    points = [
        Point(placement, rank, step) for placement in all_placements(space) for rank in (1, 16) for step in (0, 3)
    ]
    candidates = [space.candidate(point) for point in points]
    assert len({candidate.name for candidate in candidates}) == len(candidates)
    written = config.model_copy(update={"candidates": [variation(base, candidate) for candidate in candidates]})
    (tmp_path / "again.yaml").write_text(to_yaml(written))
    again = build_candidates(load_config(tmp_path / "again.yaml"))
    settings = [configuration(candidate.to_json()) for candidate in candidates]
    assert [configuration(candidate.to_json()) for candidate in again] == settings
