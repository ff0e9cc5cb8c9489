"""The result files of the paper's experiments, written and read."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import Row, from_table, rounded, to_table, write_result

from foretune.results import read_json

RESULTS = Path(__file__).parents[1] / "results" / "paper"
EXPERIMENTS = (  # those that need no model hub
    "strength",
    "strength-selective",
    "strength-mpnet",
    "descent",
    "descent-mpnet",
    "placements",
    "tasks",
)
KINDS = ("runs", "kernels", "forecasts")
Result = dict[str, Any]


def write(path: Path, result: Result) -> None:
    """Write what an experiment measured: a table of runs, of kernels and of forecasts, without curves."""
    tables = {kind: to_table([_numbers(row) for row in result[kind]]) for kind in KINDS}
    write_result(path, result | tables)


def _numbers(row: Row) -> Row:
    return {key: rounded(value) for key, value in row.items() if not isinstance(value, list)}


def read(path: Path) -> Result:
    """A result without seeds that are not complete; condition numbers that were infinite are so again."""
    result = read_json(path, "run benchmarks/paper/run.py")
    result |= {kind: from_table(result[kind]) for kind in KINDS}
    for row in result["kernels"]:
        for key in [key for key in row if key.startswith("condition_number") and row[key] is None]:
            row[key] = math.inf
    if len(result["settings"]["placements"]) == 1:
        result["runs"] = whole(result["runs"], result["settings"])
        done = {row["seed"] for row in result["runs"]}
        result["kernels"] = [row for row in result["kernels"] if row["seed"] in done]
    return result


def whole(rows: Sequence[Row], settings: Result) -> list[Row]:
    """Rows of the seeds from which every task was run at every λ, so that means are over the same tasks."""
    counts = Counter(row["seed"] for row in rows)
    return [row for row in rows if counts[row["seed"]] == len(settings["tasks"]) * len(settings["strengths"])]


def read_all() -> dict[str, Result]:
    """Every experiment that was run."""
    return {name: read(path) for name in EXPERIMENTS if (path := RESULTS / f"{name}.json").exists()}
