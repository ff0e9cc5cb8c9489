"""Forecast every candidate of every task, from every seed of its real runs.

    python benchmarks/truth/forecasts.py [TASK...] [--seeds 0 1] [-o runs/truth]

Does what ``foretune forecast`` does with ``run.yaml`` and that seed, in ``<output>/<task>/seed-<seed>``. Forecasts that
exist are not made again. Tangents depend on the head of the seed, so they are collected for every seed, and not kept.
"""

import shutil
import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from truth.grid import command_line, run_file

from foretune.cli.console import progress_bar
from foretune.forecast.run import forecast_run


def main(names: list[str], seeds: list[int], output: Path) -> None:
    """Forecast the tasks from every seed."""
    for seed in seeds:
        for name in names:
            folder = output / name
            directory = folder / f"seed-{seed}"
            if (directory / "forecast.json").exists():
                continue
            found = forecast_run(run_file(name, folder, seed), directory, bar=progress_bar)
            shutil.rmtree(directory / "tangents")
            print(f"{name} {seed}: {found['wall_seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    parser = command_line(__doc__)
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1])
    options = parser.parse_args()
    main(options.tasks, options.seeds, options.output)
