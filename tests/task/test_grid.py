"""Candidates as a grid."""

import math
from pathlib import Path

import pytest
from helpers import write_tiny_run
from hypothesis import given
from hypothesis import strategies as st

from foretune.task import build_candidates, load_config
from foretune.task.grid import expanded, setting
from foretune.task.naming import FOLDER_NAME


def test_choices_stand_for_all_their_combinations(tmp_path: Path) -> None:
    grid = {
        "peft": {"target_modules": [["query", "value"], "all-linear"], "r": [2, 8], "lora_alpha": [4]},
        "training": {"learning_rate": ["1e-3", 3e-4], "weight_decay": [0.01]},
    }
    candidates = build_candidates(load_config(write_tiny_run(tmp_path, candidates=grid)))
    assert [each.name for each in candidates] == [
        f"{targets}-r{rank}-lr{rate}"
        for targets in ("query+value", "all-linear")
        for rank in (2, 8)
        for rate in ("1e-3", "3e-4")
    ]
    last = candidates[-1]
    assert (last.peft.r, last.peft.lora_alpha, last.peft.target_modules) == (8, 4, "all-linear")
    assert (last.training["learning_rate"], last.training["weight_decay"]) == pytest.approx((3e-4, 0.01))


def test_layers_and_other_keys_are_named() -> None:
    names = [setting("layers_to_transform", value) for value in (None, [0, 1, 2], [3], [1, 4], 5)]
    assert names == ["all-layers", "layers0-2", "layers3", "layers1+4", "layers5"]
    assert setting("use_rslora", True) == "use_rslora=True" and setting("target_modules", r".*\.(q|k)") == "q_k"
    (only,) = expanded({"training": {"seed": [3]}})
    assert only["name"] == "base" and only["training"] == {"seed": 3}
    assert expanded({}) == [{"name": "base", "peft": {}, "training": {}, "proximal": {}}]


@given(
    st.sampled_from(["r", "target_modules", "layers_to_transform", "learning_rate", "optim"]),
    st.none()
    | st.text()
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.integers() | st.text(), max_size=3),
)
def test_whatever_is_written_the_name_can_name_a_folder(key: str, value: object) -> None:
    assert FOLDER_NAME.fullmatch(setting(key, value))


@pytest.mark.parametrize("rate", [math.nan, math.inf, 10**400, "1e-3 "])
def test_learning_rates_that_are_none_are_left_to_the_checks(rate: object) -> None:
    assert FOLDER_NAME.fullmatch(setting("learning_rate", rate))


@pytest.mark.parametrize("value", [[], [{"name": "base"}]])
def test_a_list_is_left_as_it_is(value: list[object]) -> None:
    assert expanded(value) is value
