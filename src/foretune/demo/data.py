"""Splits sentences from movie reviews with human sentiment ratings into training and evaluation data.

The texts are the movie snippets of Hutto and Gilbert, "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
Social Media Text", ICWSM 2014. A sentence has the mean of at least 20 human ratings from -4 to 4.
"""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

from foretune.errors import InputError
from foretune.results import write_text

CLEAR_RATING = 0.5  # sentences whose mean rating is closer to 0 are left out
EVAL_SHARE = 0.15

Row = dict[str, str]

_CONTROL = {code: bytes([code]).decode("cp1252", "ignore") or " " for code in range(0x80, 0xA0)}


def write_movie_data(ratings: Path, folder: Path) -> tuple[Path, Path]:
    """Write ``train.jsonl`` and ``eval.jsonl`` with the columns ``text`` and ``label`` into a folder.

    Args:
        ratings: The file of rated sentences.
        folder: The folder for both files. It is created if needed.

    Returns:
        The paths of the training and the evaluation file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = folder / "train.jsonl", folder / "eval.jsonl"
    for path, rows in zip(paths, movie_splits(ratings), strict=True):
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return paths


def movie_splits(ratings: Path) -> tuple[list[Row], list[Row]]:
    """Training and evaluation rows in a fixed random order, without duplicates.

    Only the hash of a text decides its split and its place, so neither depends on the other texts. (The file does not
    say which review a sentence comes from.)
    """
    texts: dict[str, Row] = {}
    for rating, text in _rated(ratings):
        if abs(rating) >= CLEAR_RATING:
            label = "positive" if rating > 0 else "negative"
            texts.setdefault(text.casefold(), {"text": text, "label": label})
    train: list[Row] = []
    evaluation: list[Row] = []
    for share, key in sorted((uniform(key), key) for key in texts):
        (evaluation if share < EVAL_SHARE else train).append(texts[key])
    return train, evaluation


def _rated(path: Path) -> Iterator[tuple[float, str]]:
    # A line has an id, a mean rating and a text, separated by tabs.
    lines = path.read_text(encoding="utf-8").rstrip("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        try:
            _, rating, text = line.split("\t")
            yield float(rating), clean(text)
        except ValueError as error:
            problem = "the line is not an id, a number and a text, separated by tabs"
            fix = f"delete {path.parent} and run the command again to download it again"
            raise InputError(f"{path}, line {number}", problem, fix) from error


def clean(text: str) -> str:
    """Normalise a text: single spaces, and Windows-1252 characters in place of misread control characters."""
    return " ".join(text.translate(_CONTROL).split())


def uniform(key: str) -> float:
    """A number in [0, 1) from the hash of a text."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest()) / 2**64
