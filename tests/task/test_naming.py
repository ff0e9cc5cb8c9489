"""Names of candidates, which are also names of folders."""

from pathlib import Path

import pytest
from helpers import write_tiny_run

from foretune.task import load_config
from foretune.task.grid import expand_grid
from foretune.task.naming import LONGEST, abridged, clashes, layers_label, name_problem, targets_label


def names(grid: object) -> list[str]:
    return [candidate["name"] for candidate in expand_grid(grid)]


def test_long_names_of_a_grid_are_shortened_and_stay_different(tmp_path: Path) -> None:
    layers = [list(range(0, 2 * count, 2)) for count in (99, 100)]
    modules = [["m" * 30, "n" * 30, last] for last in "ab"]
    grid = {"peft": {"target_modules": modules, "layers_to_transform": layers, "megatron_core": ["x" * 99, "y" * 99]}}
    grid_names = names(grid)
    assert len(set(grid_names)) == 8 and all(name_problem(name) is None for name in grid_names)
    assert [
        candidate.name for candidate in load_config(write_tiny_run(tmp_path, candidates=grid)).candidates
    ] == grid_names
    assert grid_names == names(grid), "names are the same in every run"


def test_equal_names_of_a_grid_get_a_hash() -> None:
    first, second, third = names({"training": {"learning_rate": [1.01e-3, 1.04e-3, 2e-3]}})
    assert first != second and first.startswith("lr1e-3-") and second.startswith("lr1e-3-") and third == "lr2e-3"
    capitals = names({"peft": {"target_modules": [["Query"], ["query"]]}})
    assert len({name.lower() for name in capitals}) == 2


def test_names_and_labels_have_a_largest_length() -> None:
    assert abridged("x" * LONGEST) == "x" * LONGEST and name_problem("x" * LONGEST) is None
    assert len(abridged("x" * 500)) == LONGEST and abridged("x" * 500) != abridged("x" * 501)
    assert len(layers_label(list(range(0, 200, 2)))) == 40 and layers_label([3, 4, 5]) == "layers3-5"
    assert (
        targets_label(["m" * 50, "a"]) != targets_label(["m" * 50, "b"])[:40] and len(targets_label(["m" * 50])) == 40
    )


def test_names_that_would_share_a_folder_clash() -> None:
    assert clashes(["a", "b-linearised", "linearised", "-linearised"]) == []
    (problem,) = clashes(["Base-linearised", "base"])
    assert problem.field == "candidates[0] (Base-linearised).name" and "linearised run of" in problem.found
    assert [p.found for p in clashes(["a", "A", "a"])] == ["differs from a in capital letters only", "used twice"]


@pytest.mark.parametrize("name", ["base-linearised", "linearised"])
def test_a_name_of_a_linearised_run_is_valid_if_no_other_candidate_has_it(name: str, tmp_path: Path) -> None:
    assert load_config(write_tiny_run(tmp_path, candidates=[{"name": name}])).candidates[0].name == name
