"""Mixtures of experts are recognised by their parts, and adapters on their routers and experts are refused."""

from typing import Any

import pytest
import torch
from cases import lora_model, tiny_task
from helpers import KINDS, MIXTURES, ONE_BY_ONE, tiny_batch, tiny_model
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.testing import assert_close

from foretune.errors import InputError
from foretune.tangents import check_forecastable, collect, mixture_of_experts, read_adapters
from foretune.tangents.reference import jacobian, kernel
from foretune.testing import ntk


@pytest.mark.parametrize("kind", MIXTURES)
def test_mixtures_of_experts_are_named_with_and_without_adapters(kind: str) -> None:
    blocks = tuple(f"model.layers.{layer}.mlp" for layer in range(2))
    assert mixture_of_experts(tiny_model(kind)) == blocks
    adapted = get_peft_model(tiny_model(kind), LoraConfig(target_modules=["q_proj"], task_type="SEQ_CLS"))
    assert mixture_of_experts(adapted) == tuple(f"base_model.model.{block}" for block in blocks)


@pytest.mark.parametrize("kind", [*KINDS, *ONE_BY_ONE, "t5", "bart"])
def test_other_models_have_no_mixture_of_experts(kind: str) -> None:
    assert mixture_of_experts(tiny_model(kind)) == ()
    assert mixture_of_experts(tiny_model(kind, num_labels=2)) == ()  # as many classes as layers


class Mixture(nn.Module):
    """A mixture of experts whose experts are a list of networks, as in models of other packages."""

    def __init__(self, kind: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.choose = nn.Linear(8, 3)
        self.branches = nn.ModuleList(nn.Sequential(kind(8, 8), nn.ReLU()) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.branches[int(self.choose(row).argmax())](row) for row in x])


def test_a_list_of_networks_beside_a_router_is_a_mixture_of_experts() -> None:
    model = nn.Sequential(nn.Linear(8, 8), Mixture())
    assert mixture_of_experts(model) == ("1",)
    assert mixture_of_experts(Mixture()) == ("",)
    adapted: Any = get_peft_model(model, LoraConfig(target_modules=r".*(choose|branches\.\d\.0)"))
    with pytest.raises(InputError, match=r"router of a mixture of experts \(1\.choose\); experts of .*\(1\.branches\)"):
        read_adapters(adapted)


@pytest.mark.parametrize("modules", [["experts"], ["gate"], ["experts", "gate"]])
def test_adapters_on_experts_are_refused(modules: list[str]) -> None:
    parameters = [f"mlp.{name}.{'down_proj' if name == 'experts' else 'weight'}" for name in modules]
    config = LoraConfig(target_modules=["q_proj"], target_parameters=parameters, task_type="SEQ_CLS")
    with pytest.raises(InputError, match=rf"run\.yaml: peft\.target_parameters.*mlp\.{modules[0]}") as caught:
        check_forecastable(config, "run.yaml: peft")
    assert "target_modules" in str(caught.value)
    adapted = get_peft_model(tiny_model("mixtral"), config)
    with pytest.raises(InputError, match=rf"of a mixture of experts \(model\.layers\.\{{0-1\}}\.mlp\.{modules[0]}"):
        read_adapters(adapted)


@pytest.mark.parametrize("kind", ["mixtral", "phimoe"])
def test_a_router_among_all_linear_layers_is_refused(kind: str) -> None:
    adapted = get_peft_model(tiny_model(kind), LoraConfig(target_modules="all-linear", task_type="SEQ_CLS"))
    with pytest.raises(InputError, match=r"router of a mixture of experts \(model\.layers\.\{0-1\}\.mlp.*named in"):
        read_adapters(adapted)


@pytest.mark.parametrize("kind", MIXTURES)
def test_the_other_layers_of_a_mixture_have_tangents(kind: str) -> None:
    targets = r".*(q_proj|v_proj|shared_expert\.up_proj)"
    options: dict[str, Any] = {"modules_to_save": ["score"], "target_modules": targets, "exclude_modules": None}
    model, batch = lora_model(kind, True, **options), tiny_batch("llama")
    assert_close(ntk(model, batch), kernel(jacobian(model, batch)), rtol=1e-3, atol=1e-3)  # norms in single precision
    tangents = collect(tiny_task(kind))
    assert tangents.layers and not any("router" in name or "experts" in name for name in tangents.layers)
