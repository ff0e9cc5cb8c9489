import copy

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
def test_counts_what_peft_really_trains(kind: str, everything: bool) -> None:
    model = tiny_model(kind)
    targets = "all-linear" if everything else [TARGETS[kind]]
    exclude = ["pre_classifier"] if kind == "distilbert" else None
    candidate = Candidate("c", LoraConfig(r=3, target_modules=targets, exclude_modules=exclude))
    before, state = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    found = adaptation(model, candidate, "peft")
    assert torch.equal(state, torch.random.get_rng_state())
    assert model.state_dict().keys() == before.keys() and all(p.requires_grad for p in model.parameters())
    real = get_peft_model(copy.deepcopy(model), candidate.peft_config())
    assert [module.name for module in found.modules] == real.targeted_module_names
    assert found.num_trainable == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert found.heads
    for module in found.modules:
        assert (module.rank, module.num_parameters) == (3, 3 * (module.num_inputs + module.num_outputs))


def test_head_that_all_linear_targets_too() -> None:
    with pytest.raises(InputError, match="exclude_modules") as caught:
        adaptation(tiny_model("distilbert"), Candidate("c", LoraConfig(target_modules="all-linear")), "peft")
    assert "pre_classifier" in str(caught.value)


def test_model_without_default_targets() -> None:
    with pytest.raises(InputError, match=r"peft\.target_modules: not given.*q_proj"):
        adaptation(tiny_model("vit"), Candidate("c", LoraConfig()), "peft")
