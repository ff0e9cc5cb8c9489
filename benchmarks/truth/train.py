"""Really train every candidate of every task: the truth that forecasts are compared with.

    python benchmarks/truth/train.py [TASK...] [--seeds 0 1] [-o runs/truth]

Runs go seed by seed, so that all tasks have equally many whenever this stops. Finished runs are not repeated. Several
processes with different tasks may run at the same time.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from truth.grid import TASKS, command_line, prepare

from foretune.task import load_task
from foretune.train import fine_tune


def main(names: list[str], seeds: list[int], output: Path) -> None:
    """Train every candidate of the tasks from every seed."""
    tasks = {name: load_task(prepare(TASKS[name], output / name)) for name in names}
    for seed in seeds:
        for name, task in tasks.items():
            for candidate in task.candidates:
                result, _ = fine_tune(task, candidate, output / name, seed=seed)
                final, cost = result["final"], result["cost"]
                seconds = cost["seconds"] + cost["eval_seconds"]
                found = f"{final['eval_metric']:.3f} {final['eval_loss']:.3f}"
                print(f"{name} {candidate.name} {seed}: {found} {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    main(options.tasks, options.seeds, options.output)
