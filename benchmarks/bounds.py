"""How tight the bounds of docs/theory.md P1 to P10 are, and that none is violated: many trials of the tests.

    python benchmarks/bounds.py

It takes about half a minute on one core. Tightness is the bound divided by the true value, or the true value divided by
a lower bound, so it is at least 1.
Writes ``benchmarks/results/bounds.json`` and the table of ``docs/bounds.md``.
"""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from common import save

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from trials import Trial, descent_trials, flow_trials, risk_trials, subset_trials  # ruff: ignore[module-import-not-at-top-of-file]

SEEDS: dict[Callable[[int], Iterator[Trial]], int] = {
    flow_trials: 200,
    descent_trials: 300,
    risk_trials: 3000,
    subset_trials: 3000,
}
DOCUMENT = ROOT / "docs" / "bounds.md"
MARKS = "<!-- tightness -->\n", "<!-- /tightness -->\n"


def tightness(trials: Iterable[Trial]) -> dict[str, Any]:
    """Median, 90th percentile and worst tightness of one bound; ``vacuous`` is the share where it is 0 or ∞."""
    trials = list(trials)
    known = [trial.tightness for trial in trials if math.isfinite(trial.tightness)]
    return {
        "checks": len(trials),
        "violations": sum(not trial.holds for trial in trials),
        "vacuous": 1 - len(known) / len(trials),
        "median": median(known),
        "p90": quantiles(known, n=10)[-1],
        "worst": max(known),
    }


def table(statements: dict[str, dict[str, Any]]) -> str:
    """The table of docs/bounds.md."""
    lines = ["| bound | checks | violations | says nothing | median | 90% | worst |", "|---|---|---|---|---|---|---|"]
    for name, found in statements.items():
        cells = [f"{found['checks']:,}", f"{found['violations']}", f"{100 * found['vacuous']:.0f}%"]
        cells += [f"{found[key]:.3g}" for key in ("median", "p90", "worst")]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str, statements: dict[str, dict[str, Any]]) -> str:
    """The page with the table of these statements between its marks."""
    before, rest = page.split(MARKS[0])
    return f"{before}{MARKS[0]}{table(statements)}{MARKS[1]}{rest.split(MARKS[1])[1]}"


def main() -> None:
    """Try every bound, and write the result and the table."""
    began = time.perf_counter()
    torch.set_num_threads(1)
    found: dict[str, list[Trial]] = {}
    for trial, seeds in SEEDS.items():
        for seed in range(seeds):
            for each in trial(seed):
                found.setdefault(each.statement, []).append(each)
    statements = {name: tightness(trials) for name, trials in sorted(found.items(), key=lambda item: order(item[0]))}
    save(
        "bounds",
        began,
        {
            "seeds": {trial.__name__: seeds for trial, seeds in SEEDS.items()},
            "violations": sum(each["violations"] for each in statements.values()),
            "statements": statements,
        },
    )
    DOCUMENT.write_text(with_table(DOCUMENT.read_text(encoding="utf-8"), statements), encoding="utf-8")


def order(name: str) -> tuple[int, str]:
    """The order of statements: P10 comes after P9."""
    number, _, rest = name.removeprefix("P").replace(",", " ").partition(" ")
    return int(number), rest


if __name__ == "__main__":
    main()
