"""The simulated weights in the network: what is measured on it, and that it is unchanged afterwards."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_model, write_tiny_run
from test_simulate import loaded, real_run
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from foretune.forecast.forecast import forecast
from foretune.forecast.movement import Movement, change_before_learning, linear_norm, weight_change
from foretune.forecast.network import Relinearise, gap_sample, linearity_gap, simulated_weights
from foretune.forecast.simulate import simulate
from foretune.forecast.starts import Starts
from foretune.linear.tangent_model import TangentModel
from foretune.tangents import Adapter, Tangents, collect, layer_rule, select_layers
from foretune.tangents.rules import Sizes
from foretune.task import Task, load_task
from foretune.train import Run, build_peft_model

FAR = {"num_train_epochs": 3, "learning_rate": 2e-2}  # far enough for the tangents not to hold


def moved(task: Task, tangents: Tangents, size: float) -> TangentModel:
    """A tangent model whose factors B are not zero."""
    adapters, head = Starts(task, tangents).draw(task.candidates[0], 0)
    torch.manual_seed(1)
    model = TangentModel(tangents, adapters, head)
    with torch.no_grad():
        for adapter in adapters:
            model.factors(adapter)[1].normal_(0, size)
    return model


def outputs(network: Any, task: Task) -> torch.Tensor:
    batch = task.collator([task.eval[i] for i in range(4)])
    with torch.no_grad():
        return network.eval()(**{name: value for name, value in batch.items() if name != "labels"}).logits


def distance(one: Run, other: Run) -> float:
    return max(abs(a["eval_loss"] - b["eval_loss"]) for a, b in zip(one.curve, other.curve, strict=True))


def test_the_network_has_the_simulated_weights_only_inside_the_block(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path)
    model = moved(task, tangents, 0.1)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    real = build_peft_model(task, candidate, 0)
    real.load_state_dict(
        {name: value for name, value in model.state_dict().items() if "lora_" in name}, strict=False
    )  # the names are those of peft
    expected = outputs(real, task)
    assert not torch.allclose(outputs(task.model, task), expected, atol=1e-3)
    with simulated_weights(task, model):
        torch.testing.assert_close(outputs(task.model, task), expected, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())


def test_the_gap_is_infinite_if_the_network_gives_no_finite_numbers(tmp_path: Path) -> None:
    task, _, tangents = loaded(tmp_path)
    sample = gap_sample(tangents)
    assert linearity_gap(task, moved(task, tangents, 1e30), sample, tangents.outputs[sample]) == float("inf")


def test_the_change_of_weights_equals_that_of_the_network(tmp_path: Path) -> None:
    task, _, tangents = loaded(tmp_path)
    model = moved(task, tangents, 0.1)
    names = [f"{layer}.weight" for layer in model.adapters]
    before = torch.cat([task.model.get_parameter(name).detach().flatten().clone() for name in names])
    with simulated_weights(task, model):
        after = torch.cat([task.model.get_parameter(name).detach().flatten() for name in names])
    assert weight_change(task, model) == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)
    assert weight_change(task, moved(task, tangents, 0.0)) == 0
    model.relinearise(tangents)
    assert weight_change(task, model) == 0
    assert weight_change(task, moved(task, tangents, math.inf)) == math.inf


@pytest.mark.parametrize(("layers", "share"), [(None, 1.0), ([1], 0.5)])
def test_the_share_of_layers_with_adapters(layers: list[int] | None, share: float, tmp_path: Path) -> None:
    mine = [{"name": "mine", "peft": {"target_modules": ["query"], "layers_to_transform": layers}}]
    task = load_task(write_tiny_run(tmp_path, candidates=mine))
    (found,) = forecast(collect(task), task, task.candidates)
    assert found.reach.depth == share and found.to_json()["depth"] == share


class Norms(TrainerCallback):
    """Records the network's linear weights before training and after every step."""

    def __init__(self, task: Task, heads: Sequence[str]) -> None:
        self.task, self.layers = task, sorted(select_layers(task.model, "all-linear", heads))
        self.seen = [self.weights()]
        self.rates: list[float] = []

    def weights(self) -> torch.Tensor:
        layers = [self.task.model.get_submodule(name).get_parameter("weight") for name in self.layers]
        return torch.cat([weight.detach().double().flatten() for weight in layers])

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.rates.append(kwargs["optimizer"].param_groups[0]["lr"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        with simulated_weights(self.task, kwargs["model"]):
            self.seen.append(self.weights())


@pytest.mark.parametrize("warmup", [0, 3])
def test_the_largest_early_step_equals_that_of_the_network_at_the_full_rate(warmup: int, tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path, **FAR, warmup_steps=warmup)
    heads = tangents.head.names
    movement, norms = Movement(linear_norm(task, heads)), Norms(task, heads)
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    run, _ = simulate(tangents, task, candidate, *start, candidate.seed, watch=[movement, norms])
    sizes = [float((b - a).norm() / norms.seen[0].norm()) for a, b in pairwise(norms.seen)]
    early = max(warmup, round(run.final["step"] / 10), 1)
    full = [size * max(norms.rates) / rate if rate else 0.0 for size, rate in zip(sizes, norms.rates, strict=True)]
    assert (norms.rates[0] == 0) is (warmup > 0) and max(norms.rates) == candidate.training["learning_rate"]
    assert early < len(sizes) and movement.largest_step == pytest.approx(max(full[:early]), rel=1e-4)
    assert movement.travel == pytest.approx(movement.largest_step * sum(norms.rates) / max(norms.rates), rel=1e-9)
    ways = [float((now - norms.seen[0]).norm() / norms.seen[0].norm()) for now in norms.seen[1:]]
    assert movement.changes == pytest.approx(ways, rel=1e-4) and len(ways) == len(run.step_losses)


def test_a_run_begins_to_learn_when_the_mean_loss_has_fallen_by_a_tenth() -> None:
    changes = [float(step) for step in range(1, 33)]
    falls = [1.0] * 20 + [0.7] * 12
    assert change_before_learning(changes, falls, guess_loss=1.0) == 21  # two steps are a sixteenth of the run
    assert change_before_learning(changes, [0.5] * 32, guess_loss=1.0) == 2
    for never in ([1.0] * 32, [math.nan] * 32, [1.0] * 30 + [math.inf, math.inf]):
        assert change_before_learning(changes, never, guess_loss=1.0) == 32
    assert change_before_learning([7.0], [0.3], guess_loss=1.0) == 7  # a run of one step


def test_layers_without_their_own_weight_do_not_count(tmp_path: Path) -> None:
    class Scaling(nn.Module):
        """A layer type for which a rule can be registered."""

    task, _, tangents = loaded(tmp_path)
    before = linear_norm(task, tangents.head.names)
    layer_rule(Scaling)(lambda layer: Sizes(1, 1))
    task.model.add_module("scaling", Scaling())
    assert linear_norm(task, tangents.head.names) == before > 0


def test_a_step_to_weights_that_are_not_finite_is_infinitely_large(tmp_path: Path) -> None:
    task, _, tangents = loaded(tmp_path)
    movement = Movement(1.0)
    args, state, control = TrainingArguments(str(tmp_path)), TrainerState(max_steps=1, global_step=1), TrainerControl()
    movement.on_train_begin(args, state, control, model=moved(task, tangents, 0.0))
    movement.on_step_end(args, state, control, model=moved(task, tangents, math.inf))
    assert movement.largest_step == math.inf and movement.changes == [math.inf]


def test_the_gap_goes_to_zero_with_the_distance(tmp_path: Path) -> None:
    task, _, tangents = loaded(tmp_path)
    sample = gap_sample(tangents)
    gaps = []
    for size in (1e-3, 1e-2, 1e-1, 1.0):
        model = moved(task, tangents, size)
        before = model.head(tangents.features[sample]).detach()
        gaps.append(linearity_gap(task, model, sample, before))
    assert gaps == sorted(gaps) and gaps[0] < 0.05 and gaps[-1] > 0.5


def simulated_with_refreshes_everywhere(task: Task, tangents: Tangents, steps: int, monkeypatch: Any) -> Run:
    def every_step(self: Relinearise, task: Task, refreshes: int, scratch: Path) -> None:
        self.task, self.scratch, self.shares = task, scratch, [k / refreshes for k in range(1, refreshes + 1)]

    monkeypatch.setattr(Relinearise, "__init__", every_step)
    (candidate,) = task.candidates
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    return simulate(tangents, task, candidate, *start, candidate.seed, refreshes=steps)[0]


def test_a_simulation_refreshed_at_every_step_equals_the_real_run(tmp_path: Path, monkeypatch: Any) -> None:
    task, candidate, tangents = loaded(tmp_path, **FAR)
    real, _, _ = real_run(task, candidate, tmp_path)
    start = Starts(task, tangents).draw(candidate, candidate.seed)
    plain, _ = simulate(tangents, task, candidate, *start, candidate.seed)
    ours = simulated_with_refreshes_everywhere(task, tangents, real.final["step"], monkeypatch)
    assert distance(plain, real) > 5e-3
    assert distance(ours, real) < 1e-4


def test_a_model_run_on_one_example_at_a_time_equals_the_real_run_too(tmp_path: Path, monkeypatch: Any) -> None:
    few = {"train_samples": 8, "eval_samples": 4}
    steps = {"num_train_epochs": 2, "per_device_train_batch_size": 4, "learning_rate": 2e-2}
    run = write_tiny_run(tmp_path, data=few, peft={"target_modules": ["query_proj", "value_proj"]}, training=steps)
    write_model(tmp_path / "model", "deberta-v2")
    task = load_task(run)
    tangents = collect(task, ["query_proj", "value_proj"], dtype=torch.float32)
    real, _, _ = real_run(task, task.candidates[0], tmp_path)
    ours = simulated_with_refreshes_everywhere(task, tangents, real.final["step"], monkeypatch)
    assert abs(real.curve[-1]["eval_loss"] - real.curve[0]["eval_loss"]) > 1e-2
    assert distance(ours, real) < 1e-4


def test_refreshes_bring_the_simulation_closer_and_are_spread_over_the_path(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path, **FAR | {"learning_rate": 5e-3})
    real, _, _ = real_run(task, candidate, tmp_path)
    starts, errors = Starts(task, tangents), []
    for refreshes in (0, 8):
        start = starts.draw(candidate, candidate.seed)
        ours, _ = simulate(tangents, task, candidate, *start, candidate.seed, refreshes=refreshes)
        errors.append(distance(ours, real))
    assert errors[1] < errors[0] / 3
    shares = Relinearise(task, 3, tmp_path).shares
    assert shares == sorted(shares) and [1 - (1 - s) ** 2 for s in shares] == pytest.approx([0.25, 0.5, 0.75])


def test_a_refresh_without_movement_changes_nothing(tmp_path: Path) -> None:
    task, candidate, tangents = loaded(tmp_path, num_train_epochs=2, learning_rate=1e-9)
    starts = Starts(task, tangents)
    curves = []
    for refreshes in (0, 2):
        start: tuple[list[Adapter], Any] = starts.draw(candidate, candidate.seed)
        curves.append(simulate(tangents, task, candidate, *start, candidate.seed, refreshes=refreshes)[0].curve)
    for plain, refreshed in zip(*curves, strict=True):
        assert plain["eval_loss"] == pytest.approx(refreshed["eval_loss"], abs=1e-6)
