"""Candidates that are written as a grid."""

import math
from pathlib import Path

import pytest
from helpers import write_tiny_run
from hypothesis import given
from hypothesis import strategies as st

from foretune.task import build_candidates, load_config
from foretune.task.grid import expand_grid, setting_label
from foretune.task.naming import FOLDER_NAME


def test_a_grid_gives_all_combinations_of_its_choices(tmp_path: Path) -> None:
    grid = {
        "peft": {"target_modules": [["query", "value"], "all-linear"], "r": [2, 8], "lora_alpha": [4]},
        "training": {"learning_rate": ["1e-3", 3e-4], "weight_decay": [0.01]},
    }
    candidates = build_candidates(load_config(write_tiny_run(tmp_path, candidates=grid)))
    assert [candidate.name for candidate in candidates] == [
        f"{targets}-r{rank}-lr{rate}"
        for targets in ("query+value", "all-linear")
        for rank in (2, 8)
        for rate in ("1e-3", "3e-4")
    ]
    last = candidates[-1]
    assert (last.peft.r, last.peft.lora_alpha, last.peft.target_modules) == (8, 4, "all-linear")
    assert (last.training["learning_rate"], last.training["weight_decay"]) == pytest.approx((3e-4, 0.01))


def test_labels_of_layers_and_other_keys() -> None:
    names = [setting_label("layers_to_transform", value) for value in (None, [0, 1, 2], [3], [1, 4], 5)]
    assert names == ["all-layers", "layers0-2", "layers3", "layers1+4", "layers5"]
    assert (
        setting_label("use_rslora", True) == "use_rslora=True"
        and setting_label("target_modules", r".*\.(q|k)") == "q_k"
    )
    (only,) = expand_grid({"training": {"seed": [3]}})
    assert only["name"] == "base" and only["training"] == {"seed": 3}
    assert expand_grid({}) == [{"name": "base", "peft": {}, "training": {}, "proximal": {}}]


@given(
    st.sampled_from(["r", "target_modules", "layers_to_transform", "learning_rate", "optim"]),
    st.none()
    | st.text()
    | st.integers()
    | st.floats()
    | st.booleans()
    | st.lists(st.integers() | st.text(), max_size=3),
)
def test_the_label_of_any_value_is_a_valid_folder_name(key: str, value: object) -> None:
    assert FOLDER_NAME.fullmatch(setting_label(key, value))


@pytest.mark.parametrize("rate", [math.nan, math.inf, 10**400, "1e-3 "])
def test_invalid_learning_rates_get_labels_because_checks_come_later(rate: object) -> None:
    assert FOLDER_NAME.fullmatch(setting_label("learning_rate", rate))


@pytest.mark.parametrize("value", [[], [{"name": "base"}]])
def test_a_list_is_returned_unchanged(value: list[object]) -> None:
    assert expand_grid(value) is value
