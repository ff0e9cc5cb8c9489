"""Score the candidates of every task with every predictor.

    python benchmarks/truth/score.py [TASK...] [--predictors NAME...] [--seeds 0 1] [-o runs/truth]

Writes ``<output>/<task>/scores/<predictor>.json``. Predictors that begin the run of a seed write
``<output>/<task>/seed-<seed>/scores/<predictor>.json``. Files that exist are not written again. Predictors keep what
they measured in the same folder, and none of them reads ``train`` there.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from truth.grid import command_line, run_file
from truth.registry import PREDICTORS, SEEDED, write_scores

from foretune.task import load_task


def main(names: list[str], predictors: list[str], seeds: list[int], output: Path) -> None:
    """Score the tasks one after the other."""
    for name in names:
        folder = output / name
        for seed in seeds:
            asked = [predictor for predictor in predictors if predictor in SEEDED or seed == seeds[0]]
            if not asked:
                continue
            task = load_task(run_file(name, folder, seed))
            for predictor in asked:
                place = folder / f"seed-{seed}" if predictor in SEEDED else folder
                scores = write_scores(task, predictor, PREDICTORS[predictor], place)
                if scores:
                    seconds = scores.shared_seconds + sum(each.seconds for each in scores.candidates.values())
                    best = max(scores.candidates, key=lambda each: scores.candidates[each].rank)
                    print(f"{name} {predictor} {seed}: {best} first, {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--predictors", nargs="*", default=list(PREDICTORS), choices=list(PREDICTORS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    main(options.tasks, options.predictors, options.seeds, options.output)
