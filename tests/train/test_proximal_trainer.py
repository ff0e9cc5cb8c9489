"""The proximal term in ``Trainer``, under ``accelerate launch``, in ``foretune train`` and in forecasts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import lora_model
from datasets import Dataset
from helpers import tiny_batch, write_tiny_run
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import Trainer, TrainingArguments

import foretune as ft
import foretune.cli as cli
from foretune.errors import InputError
from foretune.forecast.simulate import simulate
from foretune.forecast.starts import Starts
from foretune.tangents import collect, read_adapters
from foretune.task import load_task
from foretune.task.config import ProximalSpec
from foretune.train import build_peft_model, fine_tune, loop_arguments, run_trainer
from foretune.train.proximal import anchor_adapters
from train.two_processes import outcome, start, steps

PLAIN = "Trainer(model, args, train_dataset=train)"


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


def trainer(model: nn.Module, folder: Path, line: str = PLAIN, **given: Any) -> Any:
    """A user's own ``Trainer`` for a tiny BERT."""
    batch = tiny_batch("bert", n=12)
    rows = Dataset.from_dict({name: values.tolist() for name, values in batch.items()})
    options: dict[str, Any] = {
        "num_train_epochs": 3,
        "per_device_train_batch_size": 4,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    args = TrainingArguments(str(folder), **options | given)
    return eval(line, {"Trainer": Trainer, "ft": ft, "model": model, "args": args, "train": rows})


def test_optimiser_class_and_wrapped_optimiser_train_alike(tmp_path: Path) -> None:
    by_class = 'optimizer_cls_and_kwargs=(ft.ProximalAdamW, {"lr": 1e-3, "strength": 1.0})'
    optimizers = "optimizers=(ft.ProximalAdamW(model.parameters(), lr=1e-3, strength=1.0), None)"
    ends, anchors = [], []
    codes = [f"Trainer(model, args, train_dataset=train, {option})" for option in (by_class, optimizers)]
    for code in (*codes, PLAIN):
        model = lora_model("bert")
        before = trained(model)
        made = trainer(model, tmp_path, code, learning_rate=1e-3)
        made.train()
        ends.append(trained(model))
        anchors.append([state.get("proximal_anchor") for state in made.optimizer.state.values()])
    for name, value in before.items():
        one, other, free = ((end[name] - value).norm() for end in ends)
        assert torch.equal(ends[0][name], ends[1][name]) and 0 < one < free and other < free
    assert len(anchors[0]) == len(anchors[1]) == len(before)  # the frozen network has no anchors


@pytest.mark.parametrize("rule", ["always", "selective"])
def test_bfloat16_accumulation_clipping_and_a_schedule(rule: str, tmp_path: Path) -> None:
    model = lora_model("bert", dtype=torch.float32)
    kwargs = f"{{'lr': 1e-2, 'strength': 10.0, 'rule': '{rule}'}}"
    line = f"Trainer(model, args, train_dataset=train, optimizer_cls_and_kwargs=(ft.ProximalAdamW, {kwargs}))"
    arguments = {"gradient_accumulation_steps": 2, "max_grad_norm": 0.1, "bf16": True, "lr_scheduler_type": "cosine"}
    made = trainer(model, tmp_path, line, warmup_steps=2, **arguments)
    made.train()
    assert made.state.global_step == 6
    assert all(bool(value.isfinite().all()) for value in trained(model).values())


class Penalised(nn.Module):
    """A model whose loss includes the penalty."""

    def __init__(self, model: nn.Module, strength: float) -> None:
        super().__init__()
        self.model, self.strength = model, strength
        self.anchors = {name: value for name, value in trained(model).items() if "lora_" in name}

    def forward(self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor, labels: Tensor) -> Any:
        output = self.model(input_ids, attention_mask, token_type_ids, labels=labels)
        distances = [(self.model.get_parameter(n) - anchor).square().sum() for n, anchor in self.anchors.items()]
        output.loss = output.loss + self.strength / 2 * torch.stack(distances).sum()
        return output


def test_sgd_in_trainer_descends_the_penalised_loss_of_the_adapters(tmp_path: Path) -> None:
    options: dict[str, Any] = {"learning_rate": 0.3, "optim": "sgd", "max_grad_norm": 0.0}
    theirs = lora_model("bert", trained=True)
    trainer(Penalised(theirs, 0.5), tmp_path, **options).train()
    ours = lora_model("bert", trained=True)
    made = trainer(ours, tmp_path, **options)
    anchor_adapters(made.create_optimizer(), ours, ProximalSpec(strength=0.5))
    made.train()
    for name, value in trained(theirs).items():
        assert_close(ours.get_parameter(name).detach(), value, rtol=1e-9, atol=1e-10)


def test_the_term_acts_on_adapters_and_not_on_the_head() -> None:
    model = lora_model("bert")
    groups = [
        {"params": [p for n, p in model.named_parameters() if p.requires_grad and n.endswith("weight")]},
        {"params": [p for n, p in model.named_parameters() if p.requires_grad and n.endswith("bias")]},
    ]
    optimizer = torch.optim.AdamW(groups)
    anchor_adapters(optimizer, model, ProximalSpec(strength=2.0))
    strengths = {id(p): group["proximal_strength"] for group in optimizer.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert strengths[id(parameter)] == pytest.approx(2.0 if "lora_" in name else 0.0)
    elsewhere = torch.optim.SGD([nn.Parameter(torch.ones(1))])
    with pytest.raises(InputError, match=r"training\.optim.*SGD does not step the adapters"):
        anchor_adapters(elsewhere, model, ProximalSpec(strength=2.0))


def adapter(directory: Path, name: str = "base") -> dict[str, Tensor]:
    return load_file(directory / "train" / name / "adapter" / "adapter_model.safetensors")


@pytest.mark.parametrize("rule", ["always", "selective"])
def test_an_interrupted_run_ends_bit_for_bit_where_the_whole_run_ends(rule: str, tmp_path: Path) -> None:
    training = {"num_train_epochs": 3, "gradient_accumulation_steps": 2, "learning_rate": 1e-2, "max_grad_norm": 0.3}
    run = write_tiny_run(tmp_path, training=training, proximal={"strength": 30.0, "rule": rule, "scope": "tensor"})
    task = load_task(run)
    result, _ = fine_tune(task, task.candidates[0], tmp_path / "whole")
    assert result["proximal"] == {"strength": 30.0, "rule": rule, "scope": "tensor"}

    def pull_the_plug(step: int, steps: int) -> None:
        if step > 2 * steps // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(task, task.candidates[0], tmp_path / "cut", progress=pull_the_plug)
    first: list[int] = []
    fine_tune(task, task.candidates[0], tmp_path / "cut", progress=lambda step, _: first.append(step))
    assert first[0] > 1
    whole, resumed = adapter(tmp_path / "whole"), adapter(tmp_path / "cut")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_another_term_is_another_configuration(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path, training={"max_steps": 1}, proximal={"strength": 1.0}))
    fine_tune(task, task.candidates[0], tmp_path / "out")
    assert fine_tune(task, task.candidates[0], tmp_path / "out")[1]
    other = load_task(write_tiny_run(tmp_path, training={"max_steps": 1}))
    said: list[str] = []
    assert not fine_tune(other, other.candidates[0], tmp_path / "out", notify=said.append)[1]
    assert "proximal.strength was 1.0, now 0.0" in said[0]


@pytest.mark.parametrize("strength", [0.0, 100.0, 1e9])
def test_simulation_and_real_run_move_the_adapters_equally_far(strength: float, tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, training={"learning_rate": 3e-3}, proximal={"strength": strength})
    task = load_task(run)
    candidate, tangents = task.candidates[0], collect(task, dtype=torch.float32)
    real = build_peft_model(task, candidate, 0)
    args = candidate.training_arguments(tmp_path, **loop_arguments({}), save_strategy="no")
    run_trainer(
        real, args, task.train, task.eval, task.compute_metrics, collator=task.collator, proximal=candidate.proximal
    )
    adapters, head = Starts(task, tangents).draw(candidate, 0)
    _, simulated = simulate(tangents, task, candidate, adapters, head, 0)
    ends = {each.layer: (each.a, each.b) for each in read_adapters(real)}
    for each in adapters:
        for begin, ours, theirs in zip((each.a, each.b), simulated.factors(each), ends[each.layer], strict=True):
            far = float((theirs - begin).detach().norm())
            assert float((ours - begin).detach().norm()) == pytest.approx(far, rel=0.1)
            if strength > 1e3:  # at most one step away; a step of Adam is about as long as the learning rate
                assert far < 1.1 * 3e-3 * begin.numel() ** 0.5


def test_the_command_line_trains_forecasts_and_compares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_tiny_run(
        tmp_path,
        training={"learning_rate": 5e-3, "num_train_epochs": 6},
        candidates=[{"name": "free"}, {"name": "held", "proximal": {"strength": 1e9, "scope": "tensor"}}],
    )
    out = tmp_path / "out"
    # the growth beyond tangents was measured on pretrained networks, and does not apply to a random one
    monkeypatch.setattr("foretune.forecast.simulate.growth_of", lambda *_: None)
    for arguments in (
        ("forecast", run, "-o", out, "--seeds", 1),
        ("train", run, "-o", out),
        ("compare", out),
        ("report", out),
    ):
        monkeypatch.setattr("sys.argv", ["foretune", *map(str, arguments)])
        try:
            cli.main()
        except SystemExit as stop:
            assert not stop.code, capsys.readouterr().err
    forecasts = {row["name"]: row for row in json.loads((out / "forecast.json").read_text())["candidates"]}
    truths = {name: json.loads((out / "train" / name / "result.json").read_text()) for name in forecasts}
    held = {"strength": 1e9, "rule": "always", "scope": "tensor"}
    assert forecasts["held"]["proximal"] == truths["held"]["proximal"] == held
    assert forecasts["free"]["proximal"] == truths["free"]["proximal"] == ProximalSpec().model_dump()
    losses = {name: truths[name]["final"]["train_loss"] for name in truths}
    assert losses["held"] > losses["free"] + 0.01
    assert losses == pytest.approx({name: row["simulated"]["train_loss"] for name, row in forecasts.items()}, abs=3e-3)
    assert "strength: 1000000000.0" in (out / "report.html").read_text()
    factors = {name: adapter(out, name) for name in forecasts}
    size = {name: sum(float(v.norm()) for n, v in values.items() if "lora_B" in n) for name, values in factors.items()}
    assert size["held"] < size["free"] / 5


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="this torch has no gloo")
def test_two_processes_equal_one_process_on_the_joint_batch(tmp_path: Path) -> None:
    """``torchrun`` reserves the port at which the processes meet, so no other program can take it."""
    launch = "-m torch.distributed.run --standalone --nproc_per_node 2"
    script = [sys.executable, *launch.split(), str(Path(__file__).parent / "two_processes.py"), str(tmp_path)]
    shared = {
        "PYTHONPATH": str(Path(ft.__file__).parents[1]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    done = subprocess.run(script, env=os.environ | shared, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    alone = start(0)
    steps(*alone, 0, 1)
    for rank in range(2):
        for one, other in zip(torch.load(tmp_path / f"{rank}.pt"), outcome(*alone), strict=True):
            assert_close(one, other, rtol=1e-10, atol=1e-12)
