"""The tasks and candidates of the truth benchmark."""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from models import MODELS
from tasks import shortest_first
from truth.texts import build


@dataclass(frozen=True)
class Names:
    """What the modules of a model are called, and how many layers it has."""

    query: str
    value: str
    linear: str
    mlp: str
    block: str
    layers: int

    @property
    def query_value(self) -> list[str]:
        """The layers that LoRA adapts by default."""
        return [self.query, self.value]

    def layer(self, number: int) -> str:
        """A pattern of all linear layers in a layer."""
        return rf".*{self.block}\.{number}\..*({self.linear})"


MLP = r".*layer\.\d+\.(intermediate|output)\.dense"
NAMES = {
    "minilm": Names("query", "value", "query|key|value|dense", MLP, "layer", 6),
    "mpnet": Names("attn.q", "attn.v", r"attn\.[qkvo]|dense", MLP, "layer", 12),
    "smollm2": Names("q_proj", "v_proj", "proj", r".*\.(gate|up|down)_proj", "layers", 30),
}


def ordinary(rate: float, names: Names) -> list[dict[str, Any]]:
    """Candidates that change placement, module types, rank, scaling and learning rate; their names say what."""
    low, high = {"learning_rate": rate / 3}, {"learning_rate": rate * 3}
    third, last = names.layers // 3, names.layers - 1
    wide = {"target_modules": "all-linear"}
    return [
        {"name": "qv"},
        {"name": "qv-low-rate", "training": low},
        {"name": "qv-high-rate", "training": high},
        {"name": "qv-r2", "peft": {"r": 2, "lora_alpha": 4}},
        {"name": "qv-r32", "peft": {"r": 32, "lora_alpha": 64}},
        {"name": "qv-r32-rslora", "peft": {"r": 32, "use_rslora": True}},
        {"name": "qv-bottom", "peft": {"layers_to_transform": list(range(third))}},
        {"name": "qv-top", "peft": {"layers_to_transform": list(range(2 * third, 3 * third))}},
        {"name": "last-layer", "peft": {"target_modules": names.layer(last)}},
        {"name": "mlp", "peft": {"target_modules": names.mlp}},
        {"name": "all-linear", "peft": wide},
        {"name": "all-linear-low-rate", "peft": wide, "training": low},
        {"name": "all-linear-high-rate", "peft": wide, "training": high},
        {"name": "query", "peft": {"target_modules": [names.query]}},
        {"name": "first-layer", "peft": {"target_modules": names.layer(0)}},
        {"name": "all-linear-r32-rslora-high-rate", "peft": wide | {"r": 32, "use_rslora": True}, "training": high},
    ]


def fast(rate: float, names: Names) -> list[dict[str, Any]]:
    """Candidates with learning rates and scalings near those from which runs collapse."""
    rslora: dict[str, Any] = {"r": 32, "use_rslora": True}
    wide = {"target_modules": "all-linear"}
    found: list[tuple[str, dict[str, Any], int]] = [
        ("qv-rate-10", {}, 10),
        ("qv-rate-30", {}, 30),
        ("qv-r32-rslora-rate-3", rslora, 3),
        ("qv-r32-rslora-rate-10", rslora, 10),
        ("last-layer-rate-10", {"target_modules": names.layer(names.layers - 1)}, 10),
        ("mlp-rate-10", {"target_modules": names.mlp}, 10),
        ("all-linear-rate-6", wide, 6),
        ("all-linear-rate-10", wide, 10),
        ("all-linear-r32-rslora", wide | rslora, 1),
        ("all-linear-r32-rslora-rate-2", wide | rslora, 2),
    ]
    return [{"name": name, "peft": peft, "training": {"learning_rate": rate * times}} for name, peft, times in found]


@dataclass(frozen=True)
class Setting:
    """A task of the benchmark: its texts, and the base run that its candidates change.

    Attributes:
        builder: Name of the texts, see ``truth.texts``.
        train: Number of training examples.
        epochs: Passes over them.
        batch: Batch size.
        max_length: Largest length of a text in tokens.
        rate: The middle one of three learning rates a factor 3 apart.
        data: Further keys of the ``data`` section.
        peft: Further keys of the ``peft`` section.
        training: Further keys of the ``training`` section.
        task: ``classification`` or ``regression``.
        curve: Whether to evaluate after every epoch, or at the end only.
        model: The model that is fine-tuned.
        pooling: What its head reads.
        candidates: Names of the candidates; empty for all of the grid.
        grid: Makes the candidates from the learning rate and the model's names.
    """

    builder: str
    train: int = 256
    epochs: int = 4
    batch: int = 16
    max_length: int = 64
    rate: float = 1e-3
    data: dict[str, Any] = field(default_factory=dict)
    peft: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    task: str = "classification"
    curve: bool = True
    model: str = "minilm"
    pooling: str = "mean"
    candidates: tuple[str, ...] = ()
    grid: Callable[[float, Names], list[dict[str, Any]]] = ordinary

    @property
    def metric_name(self) -> str:
        """The name of the metric."""
        return "pearson" if self.task == "regression" else "accuracy"


HALF = ("qv", "qv-low-rate", "qv-high-rate", "qv-r32-rslora", "qv-bottom", "qv-top", "mlp", "all-linear")
PAIRS = {"text": ["text", "sentence"]}
USUAL: dict[str, Any] = {  # settings of many published scripts
    "epochs": 5,
    "batch": 8,
    "rate": 5e-4,
    "curve": False,
    "peft": {"lora_dropout": 0.1},
    "training": {"lr_scheduler_type": "cosine", "warmup_steps": 0.1, "weight_decay": 0.01},
}
FEW = ("qv", "qv-bottom", "mlp", "all-linear")
TASKS = {
    "movie": Setting("movie", epochs=8, batch=32, max_length=128),
    "tweets": Setting("tweets", epochs=8, batch=32, max_length=128),
    "amazon": Setting("amazon", task="regression"),
    "editorials": Setting("editorials", task="regression", curve=False),
    "subjectivity": Setting("subjectivity"),
    "newsgroups": Setting("newsgroups", train=600, epochs=3, max_length=32, rate=2e-3, curve=False),
    "agreement": Setting("agreement", train=1000, epochs=3, max_length=48),
    "order": Setting("order", train=512, epochs=3, max_length=48, rate=2e-3, curve=False),
    "questions": Setting("questions", train=512, epochs=3, data=PAIRS, curve=False),
    "reuters": Setting("reuters", max_length=48, curve=False),
    "fresh": Setting("fresh", **USUAL),
    "party": Setting("party", max_length=48, curve=False),
    "articles": Setting("articles", train=192, batch=8, max_length=48, curve=False),
    "messages": Setting(
        "messages",
        train=320,
        batch=8,
        max_length=48,
        curve=False,
        peft={"lora_dropout": 0.05},
        training={"gradient_accumulation_steps": 2, "warmup_steps": 0.06, "weight_decay": 0.01},
    ),
    "author": Setting(
        "author",
        train=240,
        epochs=6,
        batch=24,
        max_length=32,
        curve=False,
        peft={"lora_alpha": 8},
        training={"lr_scheduler_type": "constant"},
    ),
    "beliefs": Setting("beliefs", train=400, data=PAIRS, curve=False),
    "pooler": Setting("movie", epochs=8, batch=32, max_length=128, rate=2e-3, pooling="model"),
    "movie-mpnet": Setting("movie", rate=5e-4, curve=False, model="mpnet", candidates=HALF),
    "tweets-mpnet": Setting("tweets", rate=5e-4, curve=False, model="mpnet", candidates=HALF),
    "movie-smollm2": Setting(
        "movie", epochs=3, rate=5e-4, curve=False, model="smollm2", pooling="model", candidates=HALF
    ),
    "tweets-smollm2": Setting(
        "tweets", epochs=3, rate=5e-4, curve=False, model="smollm2", pooling="model", candidates=HALF
    ),
    "movie-128": Setting("movie", train=128, epochs=8, candidates=FEW),
    "movie-2000": Setting("movie", train=2000, epochs=2, batch=32, candidates=FEW),
    "tweets-128": Setting("tweets", train=128, epochs=8, candidates=FEW),
    "tweets-2000": Setting("tweets", train=2000, epochs=2, batch=32, candidates=FEW),
    "subjectivity-fast": Setting("subjectivity", curve=False, grid=fast),
    "questions-fast": Setting("questions", train=512, epochs=3, data=PAIRS, curve=False, grid=fast),
    "tweets-fast": Setting("tweets", epochs=8, batch=32, max_length=128, curve=False, grid=fast),
    "amazon-fast": Setting("amazon", task="regression", curve=False, grid=fast),
    "fresh-fast": Setting("fresh", grid=fast, **USUAL),
    "editorials-fast": Setting("editorials", task="regression", curve=False, grid=fast),
}
EVAL_SAMPLES = 600


def prepare(setting: Setting, folder: Path) -> Path:
    """Write the texts and ``run.yaml`` of a task into a folder."""
    texts = folder / "texts"
    build(setting.builder, texts)
    shortest_first(texts / "eval.jsonl", EVAL_SAMPLES, text_length)
    names = NAMES[setting.model]
    content = {
        "model": {"path": MODELS[setting.model](), "pooling": setting.pooling, "task": setting.task},
        "data": {"train": "texts/train.jsonl", "eval": "texts/eval.jsonl", "text": "text", "label": "label"}
        | {"max_length": setting.max_length, "train_samples": setting.train, "eval_samples": EVAL_SAMPLES}
        | setting.data,
        "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": names.query_value} | setting.peft,
        "training": {"learning_rate": setting.rate, "num_train_epochs": setting.epochs, "seed": 0}
        | {"per_device_train_batch_size": setting.batch, "per_device_eval_batch_size": 40}
        | ({} if setting.curve else {"eval_strategy": "no"})
        | setting.training,
        "candidates": [
            each
            for each in setting.grid(setting.rate, names)
            if not setting.candidates or each["name"] in setting.candidates
        ],
    }
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def prepared(setting: Setting, folder: Path) -> Path:
    """The ``run.yaml`` in a folder; it is written if there is none."""
    path = folder / "run.yaml"
    return path if path.exists() else prepare(setting, folder)


def command_line(text: str | None) -> argparse.ArgumentParser:
    """The arguments that all steps of the benchmark have: tasks, and the folder of their runs."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/truth"))
    return parser


def run_file(name: str, folder: Path, seed: int = 0) -> Path:
    """The ``run.yaml`` of a task, written if there is none; for another seed than 0 it is a copy beside it."""
    path = prepared(TASKS[name], folder)
    if seed == 0:
        return path
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    content["training"]["seed"] = seed
    own = folder / f"run-{seed}.yaml"
    own.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return own


def text_length(row: str) -> int:
    """Number of characters of all strings in a row."""
    return sum(len(value) for value in json.loads(row).values() if isinstance(value, str))
