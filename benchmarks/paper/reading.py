"""How the pages summarise results, and how they write numbers, tables, paragraphs and pictures."""

import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
from paper.results import Result
from scipy.stats import rankdata
from tables import Row

HERE = Path(__file__).parent
DOCS = HERE.parent.parent / "docs"
MODELS = {"minilm": "MiniLM-L6", "mpnet": "MPNet-base", "smollm2": "SmolLM2-135M"}
DRAWS = 4000  # of the bootstrap


def kind(results: dict[str, Result], name: str) -> list[Result]:
    """An experiment and its variants."""
    return [result for each, result in results.items() if each.partition("-")[0] == name]


def where(rows: Sequence[Row], **keys: Any) -> list[Row]:
    """Rows with these values."""
    return [row for row in rows if all(row[key] == value for key, value in keys.items())]


def mean(rows: Sequence[Row], key: str) -> float:
    """Mean of a column, in which every task has the same weight."""
    return fmean(fmean(row[key] for row in where(rows, task=task)) for task in {row["task"]: None for row in rows})


def selective(result: Result) -> bool:
    """Whether an experiment uses the selective rule of the proximal term."""
    return bool(result["settings"].get("rule") == "selective")


def model(result: Result) -> str:
    """The model of an experiment, for reading."""
    return MODELS[result["settings"]["run"]["model"]["package"]]


def seeds(rows: Sequence[Row]) -> list[int]:
    """Seeds that were run."""
    return sorted({row["seed"] for row in rows})


def by_seed(rows: Sequence[Row], key: str) -> list[float]:
    """Means of a column over tasks, for every seed."""
    return [mean(where(rows, seed=seed), key) for seed in seeds(rows)]


def change(result: Result, key: str, before: float, after: float) -> list[float]:
    """By how much the mean over tasks changes from one λ to another, for every seed."""
    ends = (by_seed(where(result["runs"], strength=strength), key) for strength in (before, after))
    return [after - before for before, after in zip(*ends, strict=True)]


def spread(values: Sequence[float], form: str = ".2f", scale: float = 1.0) -> str:
    """A mean, with the standard deviation over seeds where there are several."""
    scaled = [scale * value for value in values]
    deviation = f" ± {stdev(scaled):{form.removeprefix('+')}}" if len(scaled) > 1 else ""
    return f"{fmean(scaled):{form}}{deviation}"


def standard_error(result: Result, accuracy: float = 0.75) -> float:
    """Standard error in points of an accuracy, from the number of evaluation texts."""
    return 100 * math.sqrt(accuracy * (1 - accuracy) / result["settings"]["run"]["data"]["eval_samples"])


def spearman(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation; nan if one of the two is constant."""
    return float(_rank_correlations(np.asarray(one)[None], np.asarray(other)[None])[0])


def interval(one: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """95% bootstrap interval of the rank correlation, resampling pairs."""
    draws = np.random.default_rng(0).integers(len(one), size=(DRAWS, len(one)))
    found = _rank_correlations(np.asarray(one)[draws], np.asarray(other)[draws])
    low, high = np.nanpercentile(found, [2.5, 97.5])
    return float(low), float(high)


def _rank_correlations(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    ranks = [rankdata(each, axis=1) for each in (one, other)]
    a, b = (each - each.mean(axis=1, keepdims=True) for each in ranks)
    with np.errstate(invalid="ignore"):
        return (a * b).sum(axis=1) / np.sqrt((a**2).sum(axis=1) * (b**2).sum(axis=1))


def correlation(one: Sequence[float], other: Sequence[float]) -> str:
    """A rank correlation with its interval, for reading."""
    low, high = interval(one, other)
    return f"{spearman(one, other):+.2f} [{low:+.2f}, {high:+.2f}]"


def verdict(one: Sequence[float], other: Sequence[float], sign: int) -> str:
    """Whether there is a rank correlation of this sign."""
    low, high = sorted(sign * end for end in interval(one, other))
    if low > 0:
        return "holds here"
    return "does not hold here (the opposite does)" if high < 0 else "not found here"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A table in Markdown."""
    lines = [f"| {' | '.join(cells)} |" for cells in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def counted(count: int, thing: str) -> str:
    """A number of things, with the plural where it is due."""
    return f"one {thing}" if count == 1 else f"{count} {thing}s"


def points(value: float) -> str:
    """A share in percent."""
    return f"{100 * value:.1f}"


def write_picture(name: str, content: str) -> str:
    """Write a picture beside the page, and return the Markdown that shows it."""
    folder = DOCS / "paper"
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.svg").write_text(content, encoding="utf-8")
    title = content.partition("<title>")[2].partition("</title>")[0]
    return f"![{title}](paper/{name}.svg)"


def by_strength(result: Result, key: str, task: str | None = None) -> list[float]:
    """Means of a column over seeds, and over tasks unless one is named, for every λ."""
    chosen = result["runs"] if task is None else where(result["runs"], task=task)
    return [mean(where(chosen, strength=strength), key) for strength in result["settings"]["strengths"]]


def deviations(result: Result, key: str, task: str) -> list[float]:
    """Standard deviations of a column over the seeds of a task, for every λ; 0 where there is one seed."""
    chosen = where(result["runs"], task=task)
    columns = ([row[key] for row in where(chosen, strength=each)] for each in result["settings"]["strengths"])
    return [stdev(column) if len(column) > 1 else 0.0 for column in columns]


def listed(names: list[str]) -> str:
    """Names separated by commas."""
    return ", ".join(names) or "none"


def paragraph(text: str, indent: str = "") -> list[str]:
    """The lines of a wrapped paragraph, and an empty line."""
    lines = textwrap.wrap(text, 118, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return [*lines, ""]
