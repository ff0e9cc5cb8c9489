import copy
from typing import Any

import pytest
import torch
from helpers import KINDS, tiny_model
from peft import LoraConfig, get_peft_model

from foretune.errors import InputError
from foretune.task import Candidate
from foretune.task.matching import adaptation

TARGETS = {
    "bert": "query",
    "roberta": "query",
    "distilbert": "q_lin",
    "llama": "q_proj",
    "gpt2": "c_attn",
    "vit": "q_proj",
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("everything", [False, True])
def test_modules_and_counts_are_those_of_peft(kind: str, everything: bool) -> None:
    model = tiny_model(kind)
    targets = "all-linear" if everything else [TARGETS[kind]]
    exclude = ["pre_classifier"] if kind == "distilbert" else None
    candidate = Candidate("c", LoraConfig(r=3, target_modules=targets, exclude_modules=exclude))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    result = adaptation(model, candidate, "peft")
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.state_dict().keys() == before.keys() and all(p.requires_grad for p in model.parameters())
    real = get_peft_model(copy.deepcopy(model), candidate.peft_config())
    assert [module.name for module in result.modules] == real.targeted_module_names
    assert result.num_trainable == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert result.heads
    for module in result.modules:
        assert (module.rank, module.num_parameters) == (3, 3 * (module.num_inputs + module.num_outputs))


def test_all_linear_that_includes_the_head_is_refused() -> None:
    with pytest.raises(InputError, match="exclude_modules") as caught:
        adaptation(tiny_model("distilbert"), Candidate("c", LoraConfig(target_modules="all-linear")), "peft")
    assert "pre_classifier" in str(caught.value)


def test_a_model_without_default_targets_needs_target_modules() -> None:
    with pytest.raises(InputError, match=r"peft\.target_modules: not given.*q_proj"):
        adaptation(tiny_model("vit"), Candidate("c", LoraConfig()), "peft")


GOOD_NAMES: list[dict[str, Any]] = [
    {"rank_pattern": {"query": 4}},
    {"rank_pattern": {"layer.1.attention.self.query": 4}},
    {"rank_pattern": {r"layer\.\d\.attention.*query": 4, "key": 2}},  # another candidate may adapt the keys
    {"rank_pattern": {"^bert.encoder.layer.0.attention.self.query": 4}},
    {"alpha_pattern": {"bert.encoder.layer.0.attention.self.query": 4}},
    {"modules_to_save": ["pooler", "classifier"]},
    {"modules_to_save": ["score"]},  # peft looks for this name in every classifier
    {"layers_to_transform": [1], "layers_pattern": "layer"},
    {"layers_to_transform": [1], "layers_pattern": ["blocks.layer", "encoder.layer"][1:]},
    {"exclude_modules": ["layer.0.attention.self.query"]},
    {"exclude_modules": r".*0\.attention.*"},
    {"target_parameters": ["pooler.dense.weight"]},
    {"trainable_token_indices": [1, 39]},
    {"trainable_token_indices": {"word_embeddings": [1]}},
    {"layer_replication": [[0, 2], [1, 2]]},
]
BAD_NAMES: list[tuple[dict[str, Any], str]] = [
    ({"rank_pattern": {"qury": 4}}, r"rank_pattern: no module .*'qury'.*query"),
    ({"rank_pattern": {"query": 4, "layer.2.attention.self.query": 4}}, r"rank_pattern: no module .*'layer\.2"),
    ({"rank_pattern": {r"layer\.[2-9]\..*": 4}}, r"rank_pattern: no module"),
    ({"alpha_pattern": {"vlaue": 4}}, r"alpha_pattern: no module .*'vlaue'.*Write value"),
    ({"modules_to_save": ["poler"]}, r"modules_to_save: no module .*'poler'.*Write pooler"),
    ({"modules_to_save": ["classifier", "embedings"]}, r"modules_to_save: no module .*'embedings'.*Write embeddings"),
    (
        {"layers_to_transform": [1], "layers_pattern": ["blocks"]},
        r"layers_pattern: no list of layers .*'blocks'.*layer",
    ),
    ({"layers_to_transform": [1], "layers_pattern": "h"}, r"layers_pattern: no list of layers .*'h'.*layer"),
    ({"exclude_modules": ["qery"]}, r"exclude_modules: no module .*'qery'.*Write query"),
    ({"exclude_modules": r".*nothing"}, r"exclude_modules: no module .*nothing"),
    ({"target_parameters": ["dense.wait"]}, r"target_parameters: no parameter .*Write dense\.weight"),
    ({"trainable_token_indices": [40]}, r"trainable_token_indices: found 40.*from 0 to 39"),
    (
        {"trainable_token_indices": {"word_embeding": [1]}},
        r"trainable_token_indices: no module .*Write word_embeddings",
    ),
    ({"layer_replication": [[0, 3]]}, r"layer_replication: found \[0, 3\].*from 0 to 2"),
    ({"layer_replication": [[1, 1]]}, r"layer_replication: found \[1, 1\]"),
    ({"layer_replication": [0, 2]}, r"layer_replication: found 0.*pairs"),
]


@pytest.mark.parametrize("keys", GOOD_NAMES, ids=str)
def test_names_that_match_something_are_accepted(keys: dict[str, Any]) -> None:
    adaptation(tiny_model("bert"), Candidate("c", LoraConfig(target_modules=["query", "value"], **keys)), "peft")


@pytest.mark.parametrize(("keys", "message"), BAD_NAMES, ids=str)
def test_names_that_match_nothing_are_refused_with_the_nearest_name(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=rf"^run\.yaml: peft\.{message}"):
        config = LoraConfig(target_modules=["query", "value"], **keys)
        adaptation(tiny_model("bert"), Candidate("c", config), "run.yaml: peft")


def test_layers_can_be_repeated_for_some_models_only() -> None:
    config: Any = LoraConfig(target_modules=["c_attn"], layer_replication=[(0, 2)])
    with pytest.raises(InputError, match=r"peft\.layer_replication: peft repeats layers of Llama.* not of GPT2"):
        adaptation(tiny_model("gpt2"), Candidate("c", config), "peft")
