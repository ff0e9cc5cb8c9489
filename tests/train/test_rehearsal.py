"""Errors that Trainer would raise later are found before anything expensive starts."""

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import write_tiny_run
from transformers.utils import logging

from foretune.errors import InputError
from foretune.task import load_task
from foretune.train.rehearsal import rehearse


def refused(folder: Path, peft: dict[str, Any] | None = None, **training: Any) -> str:
    """The error of a rehearsal with these settings; empty if there is none."""
    task = load_task(write_tiny_run(folder, training=training, peft=peft or {}))
    try:
        rehearse(task, task.candidates[0], "run.yaml: candidate 'base'")
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("optim", "package"),
    [
        ("paged_adamw_8bit", "bitsandbytes"),
        ("adamw_bnb_8bit", "bitsandbytes"),
        ("galore_adamw", "galore_torch"),
        ("schedule_free_adamw", "schedulefree"),
        ("stable_adamw", "optimi"),
        ("adamw_torch_8bit", "torchao"),
        ("apollo_adamw", "apollo_torch"),
        ("lomo", "lomo_optim"),
        ("grokadamw", "grokadamw"),
    ],
)
def test_an_optimiser_without_its_package_is_named(optim: str, package: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(package):
        pytest.skip(f"{package} is installed")
    more: dict[str, Any] = {"optim_target_modules": ["query"]} if optim.startswith(("galore", "apollo")) else {}
    said = refused(tmp_path, optim=optim, **more)
    assert "candidate 'base': training.optim" in said and "install" in said and "write adamw_torch" in said


@pytest.mark.parametrize(
    ("training", "words"),
    [
        (
            {"dataloader_drop_last": True, "per_device_train_batch_size": 64},
            ["dataloader_drop_last", "no batch is left"],
        ),
        ({"report_to": "tensorboard"}, ["training.report_to", "tensorboard cannot be used", "write none"]),
        ({"fsdp": "full_shard"}, ["training", "fsdp"]),
        ({"use_liger_kernel": True}, ["liger"]),
        ({"push_to_hub": True}, ["push_to_hub", "cannot be used from here"]),
        ({"metric_for_best_model": "f1"}, ["metric_for_best_model", "loss, accuracy"]),
        ({"eval_strategy": "epoch", "metric_for_best_model": "acuracy"}, ["metric_for_best_model", "Write accuracy"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_a_run_that_cannot_be_built_is_refused_with_the_key(
    training: dict[str, Any], words: list[str], tmp_path: Path
) -> None:
    said = refused(tmp_path, **training)
    assert all(word in said for word in words), said


def test_an_initialisation_that_needs_a_step_first_is_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, peft={"init_lora_weights": "lora_ga"})
    assert "peft.init_lora_weights" in said and "'lora_ga'" in said and "needs gradients" in said


@pytest.mark.parametrize(
    "training",
    [
        {"metric_for_best_model": "accuracy"},
        {"metric_for_best_model": "eval_accuracy"},
        {"prediction_loss_only": True},
        {"batch_eval_metrics": True},
        {"eval_do_concat_batches": False},
        {"include_for_metrics": ["inputs", "loss"]},
        {"label_names": ["labels"]},
        {"dataloader_drop_last": True},
        {"eval_delay": 100},
        {"neftune_noise_alpha": 5},
        {"optim": "adafactor"},
        {"lr_scheduler_type": "cosine_with_restarts"},
    ],
    ids=lambda value: "-".join(value),
)
def test_arguments_that_trainer_accepts_are_accepted(training: dict[str, Any], tmp_path: Path) -> None:
    assert refused(tmp_path, **training) == ""


class _NeedsAGpu(torch.optim.SGD):
    """An optimiser with parameter groups of its own, as GaLore's, that only runs on a GPU, as those in 8 bits."""

    def step(self, closure: Any = None) -> Any:
        assert [group["rank"] for group in self.param_groups] == [2]
        raise AssertionError("Torch not compiled with CUDA enabled")


def test_an_optimiser_with_its_own_groups_takes_a_step_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def get(args: Any, model: Any) -> tuple[Any, dict[str, Any]]:
        logging.get_logger("transformers.trainer").warning("a layer was ignored")
        return _NeedsAGpu, {"lr": 1.0, "params": [{"params": list(model.parameters()), "rank": 2}]}

    task = load_task(write_tiny_run(tmp_path))
    monkeypatch.setattr("transformers.Trainer.get_optimizer_cls_and_kwargs", staticmethod(get))
    with pytest.raises(InputError, match=r"training\.optim: .*CUDA.*write adamw_torch"):
        rehearse(task, task.candidates[0], "run.yaml")
    assert "ignored" not in capfd.readouterr().err


def test_a_rehearsal_does_not_change_the_random_state(tmp_path: Path) -> None:
    task = load_task(write_tiny_run(tmp_path))
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    rehearse(task, task.candidates[0], "run.yaml")
    assert torch.equal(torch.rand(2), expected)
