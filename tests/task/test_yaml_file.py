"""Unusual but valid YAML."""

from pathlib import Path
from typing import Any

import pytest

from foretune.errors import InputError
from foretune.task.yaml_file import DEEPEST, read_yaml


def read(folder: Path, text: str) -> Any:
    path = folder / "file.yaml"
    path.write_bytes(text.encode())
    return read_yaml(path)


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("a: 2024-13-01\nb: 2024-01-01", {"a": "2024-13-01", "b": "2024-01-01"}),
        ("a: [1, -2, 0x1f, 1.5, .inf, true, ~, '3']", {"a": [1, -2, 31, 1.5, float("inf"), True, None, "3"]}),
        (
            "a: [010, 1:30, 0o7, 1_000, 1.5e3, -.5, 1e-3, 0123456]",
            {"a": ["010", "1:30", "0o7", 1000, 1500.0, -0.5, "1e-3", "0123456"]},
        ),
        ("a: =\nb: '<<'", {"a": "=", "b": "<<"}),
        ("'1': a\n'yes': b", {"1": "a", "yes": "b"}),
        ("\ufeffa: 1\r\nb: 2\r\n", {"a": 1, "b": 2}),
        ("a: &x [1]\nb: *x", {"a": [1], "b": [1]}),
        ("a: {b: 1}\nc: {b: 1}", {"a": {"b": 1}, "c": {"b": 1}}),
    ],
)
def test_valid_yaml_gives_plain_data(text: str, content: Any, tmp_path: Path) -> None:
    assert read(tmp_path, text) == content


@pytest.mark.parametrize(
    "text",
    [
        "a: &a {x: 1, z: 3}\nb: &b {<<: *a, x: 2}\nc: {<<: *b, y: 1}",
        "q: {a: &a {x: 1, z: 3}, b: &b {<<: *a, x: 2}}\nc: {<<: *b, y: 1}",
        "a: &a {x: 1, z: 3}\nb: &b {x: 2}\nc: {<<: [*b, *a], y: 1}",
        "a: &a {x: 1, z: 3, y: 4}\nb: &b {x: 2}\nc: {y: 1, <<: [*b, *a]}",
    ],
)
def test_own_values_of_a_mapping_override_inherited_ones(text: str, tmp_path: Path) -> None:
    assert read(tmp_path, text)["c"] == {"x": 2, "z": 3, "y": 1}


def test_limits_are_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = "[" * DEEPEST + "]" * DEEPEST
    assert read(tmp_path, deep)
    with pytest.raises(InputError, match="flatter"):
        read(tmp_path, f"[{deep}]")
    monkeypatch.setattr("foretune.task.yaml_file.MOST_VALUES", 100)
    tenth = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1]\nb: [*a, *a, *a, *a, *a, *a, *a"
    assert len(read(tmp_path, f"{tenth}, *a]")["b"]) == 8
    with pytest.raises(InputError, match="fewer"):
        read(tmp_path, f"{tenth}, *a, *a]")
