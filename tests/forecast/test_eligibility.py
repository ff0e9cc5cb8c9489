"""Doctor and forecast accept the same files; candidates that cannot be forecast are left out by name."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run

from foretune.cli.console import progress_bar
from foretune.errors import InputError
from foretune.forecast.eligibility import check_training, examine
from foretune.forecast.recommend import recommend_run
from foretune.forecast.run import forecast_run
from foretune.task.loading import load_run

GOOD: dict[str, Any] = {"name": "good"}
UNFORECASTABLE = [
    ({"peft": {"use_dora": True}}, "DoRA"),
    ({"peft": {"bias": "all"}}, "bias"),
    ({"peft": {"init_lora_weights": "pissa"}}, "init_lora_weights"),
    ({"peft": {"init_lora_weights": "eva"}}, "init_lora_weights"),
    ({"peft": {"lora_bias": True}}, "lora_bias"),
    ({"peft": {"target_modules": ["word_embeddings"]}}, "embedding"),
    ({"peft": {"trainable_token_indices": [1, 2]}}, "trainable_token_indices"),
    ({"peft": {"layer_replication": [[0, 2], [1, 2]]}}, "layer_replication"),
    ({"peft": {"target_parameters": ["pooler.dense.weight"]}}, "target_parameters"),
    ({"peft": {"modules_to_save": ["pooler", "classifier"]}}, "modules_to_save"),
    ({"training": {"neftune_noise_alpha": 5}}, "neftune_noise_alpha"),
    ({"training": {"optim": "stable_adamw"}}, "optim"),
    ({"training": {"report_to": "tensorboard"}}, "tensorboard"),
]


@pytest.mark.parametrize(
    ("keys", "word"), UNFORECASTABLE, ids=[word + str(i) for i, (_, word) in enumerate(UNFORECASTABLE)]
)
def test_a_candidate_that_cannot_be_forecast_is_left_out_by_name(
    keys: dict[str, Any], word: str, tmp_path: Path
) -> None:
    run = write_tiny_run(tmp_path, candidates=[GOOD, {"name": "odd", **keys}])
    examined = examine(load_run(run), run)
    assert [candidate.name for candidate in examined.loaded.task.candidates] == ["good"]
    (left_out,) = examined.left_out
    assert left_out["name"] == "odd" and word in left_out["reason"]


@pytest.mark.parametrize(("keys", "word"), UNFORECASTABLE[:1] + UNFORECASTABLE[10:])
def test_if_no_candidate_is_left_the_reason_is_raised(keys: dict[str, Any], word: str, tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, **keys)
    with pytest.raises(InputError, match=word) as refusal:
        examine(load_run(run), run)
    assert "candidate 'base'" in str(refusal.value)


def test_forecast_names_what_it_left_out(tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, candidates=[{"name": "odd", "peft": {"use_dora": True}}, GOOD])
    found = forecast_run(run, tmp_path / "out", bar=progress_bar)
    assert [row["name"] for row in found["candidates"]] == ["good"]
    assert [entry["name"] for entry in json.loads((tmp_path / "out" / "forecast.json").read_text())["left_out"]] == [
        "odd"
    ]


def test_recommend_needs_a_base_that_can_be_forecast(tmp_path: Path) -> None:
    run = write_tiny_run(tmp_path, peft={"use_dora": True}, candidates=[{"name": "plain", "peft": {"use_dora": False}}])
    with pytest.raises(InputError, match="DoRA"):
        recommend_run(run, tmp_path / "out", bar=progress_bar)


def test_candidates_that_share_their_training_are_rehearsed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranks = [{"name": f"r{rank}", "peft": {"r": rank}} for rank in (1, 2, 3)]
    slow = {"name": "slow", "training": {"learning_rate": 1e-5}}
    run = write_tiny_run(tmp_path, candidates=[*ranks, slow])
    rehearsed: list[str] = []
    monkeypatch.setattr("foretune.forecast.eligibility.rehearse", lambda _, each, __: rehearsed.append(each.name))
    examine(load_run(run), run)
    assert rehearsed == ["r1", "slow"]


@pytest.mark.parametrize("optim", ["galore_adamw", "apollo_adamw_layerwise", "lomo", "adalomo"])
def test_optimisers_of_the_networks_own_modules_cannot_be_forecast(optim: str, tmp_path: Path) -> None:
    task = load_run(write_tiny_run(tmp_path)).task
    candidate = replace(task.candidates[0], training={"optim": optim, "optim_target_modules": ["query"]})
    with pytest.raises(InputError, match=f"{optim} cannot be forecast"):
        check_training(candidate, "training")
    check_training(replace(candidate, training={"optim": "adafactor"}), "training")
