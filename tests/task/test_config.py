from pathlib import Path
from typing import Any

import pytest
from helpers import write_tiny_run

from foretune.errors import InputError
from foretune.task import build_candidates, load_config
from foretune.task.config import GgufFile, to_yaml


def test_training_keys_without_effect_are_noted(tmp_path: Path) -> None:
    keys = {"output_dir": "somewhere", "resume_from_checkpoint": "somewhere/checkpoint-5"}
    notes = load_config(write_tiny_run(tmp_path, training=keys)).notes
    assert [note.split(" is ")[0] for note in notes] == ["training.output_dir", "training.resume_from_checkpoint"]


def test_relative_paths_start_at_the_folder_of_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_tiny_run(tmp_path / "deep")
    monkeypatch.chdir(tmp_path)
    config = load_config("deep/run.yaml")
    assert config.model.path == str(tmp_path / "deep" / "model")
    assert config.data.train.path == str(tmp_path / "deep" / "train.jsonl")


def test_hub_ids_stay_and_paths_of_gguf_files_become_absolute(tmp_path: Path) -> None:
    assert load_config(write_tiny_run(tmp_path, model={"path": "org/name"})).model.path == "org/name"
    gguf = load_config(write_tiny_run(tmp_path, model={"path": {"gguf": "m.gguf"}})).model.path
    assert gguf == GgufFile(gguf=str(tmp_path / "m.gguf"))


def test_a_written_config_can_be_read_again(tmp_path: Path) -> None:
    hub = {"hub": "glue", "name": "sst2", "split": "train"}
    candidates = [
        {"name": "a", "peft": {"layers_to_transform": None, "r": 2}},
        {"name": "b", "proximal": {"strength": 0.5}},
    ]
    path = write_tiny_run(tmp_path, model={"path": {"gguf": "m.gguf"}}, data={"train": hub}, candidates=candidates)
    config = load_config(path)
    (tmp_path / "again.yaml").write_text(to_yaml(config), encoding="utf-8")
    again = load_config(tmp_path / "again.yaml")
    assert again.model_dump() == config.model_dump()


def test_numbers_that_yaml_reads_as_text_and_words_that_it_reads_as_booleans(tmp_path: Path) -> None:
    path = write_tiny_run(tmp_path)
    text = path.read_text().replace("learning_rate: 0.001", "learning_rate: 1e-3\n  eval_strategy: no")
    path.write_text(text.replace("r: 4", "r: 4\n  lora_dropout: 1e-1") + "proximal: {strength: 1e-2}\n")
    config = load_config(path)
    assert config.training["learning_rate"] == pytest.approx(1e-3)
    assert config.training["eval_strategy"] == "no"
    assert config.peft["lora_dropout"] == pytest.approx(0.1)
    assert config.proximal.strength == pytest.approx(0.01)


def test_candidates_override_key_by_key(tmp_path: Path) -> None:
    larger: dict[str, Any] = {
        "name": "larger",
        "peft": {"r": 6, "target_modules": "all-linear"},
        "training": {"seed": 3},
    }
    pulled: dict[str, Any] = {"name": "pulled", "proximal": {"strength": 0.5}}
    config = load_config(write_tiny_run(tmp_path, candidates=[larger, pulled], proximal={"rule": "selective"}))
    first, second = build_candidates(config)
    assert (first.peft.r, first.peft.lora_alpha, first.peft.target_modules) == (6, 8, "all-linear")
    assert first.seed == 3 and first.training["learning_rate"] == pytest.approx(1e-3)
    assert (second.proximal.strength, second.proximal.rule) == (0.5, "selective")
    assert [candidate.name for candidate in build_candidates(config, ["pulled"])] == ["pulled"]
    with pytest.raises(InputError, match="larger"):
        build_candidates(config, ["lagrer"])


def test_a_file_without_candidates_gets_one_named_base(tmp_path: Path) -> None:
    (candidate,) = build_candidates(load_config(write_tiny_run(tmp_path)))
    assert candidate.name == "base"
    assert candidate.peft_dict() == {
        "type": "lora",
        "r": 4,
        "target_modules": ["query", "value"],
        "lora_alpha": 8,
    }
    assert candidate.training_dict()["optim"] == "adamw_torch"
