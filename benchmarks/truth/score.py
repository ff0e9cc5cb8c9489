"""Scores of every predictor for the candidates of every task.

    python benchmarks/truth/score.py [TASK...] [--predictors NAME...] [-o runs/truth]

Writes ``<output>/<task>/scores/<predictor>.json``; what is there is not made again. Predictors keep what they measured
in the task's folder, and none of them reads ``train`` there.
"""

import argparse
import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from truth.grid import TASKS, prepare
from truth.registry import PREDICTORS, write_scores

from foretune.task import load_task


def main(names: list[str], predictors: list[str], output: Path) -> None:
    """Score the tasks one after the other."""
    for name in names:
        folder = output / name
        path = folder / "run.yaml"
        task = load_task(path if path.exists() else prepare(TASKS[name], folder))
        for predictor in predictors:
            scores = write_scores(task, predictor, PREDICTORS[predictor], folder)
            if scores:
                seconds = scores.shared_seconds + sum(each.seconds for each in scores.candidates.values())
                best = max(scores.candidates, key=lambda each: scores.candidates[each].rank)
                print(f"{name} {predictor}: {best} first, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="*", default=list(TASKS))
    parser.add_argument("--predictors", nargs="*", default=list(PREDICTORS), choices=list(PREDICTORS))
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/truth"))
    options = parser.parse_args()
    main(options.tasks, options.predictors, options.output)
