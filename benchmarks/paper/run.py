"""Run the paper's experiments; every YAML file beside this one describes one.

    python benchmarks/paper/run.py [EXPERIMENT...] [-o runs/paper]
    python benchmarks/paper/document.py

By default those experiments are run that need no model hub. Finished runs are not repeated. Writes
``benchmarks/results/paper/EXPERIMENT.json`` after every seed.
"""

import argparse
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path[0] = str(HERE.parent)  # not this folder: its names are common ones

from paper.experiment import Experiment, Work  # ruff: ignore[module-import-not-at-top-of-file]
from paper.results import EXPERIMENTS, RESULTS, write  # ruff: ignore[module-import-not-at-top-of-file]


def main(names: list[str], output: Path) -> None:
    """Run experiments seed by seed, so that they have equally many runs whenever this stops."""
    works = [Work(name, Experiment.read(HERE / f"{name}.yaml"), output) for name in names]
    RESULTS.mkdir(parents=True, exist_ok=True)
    for seed in sorted({seed for work in works for seed in work.experiment.seeds}):
        for work in works:
            if seed in work.experiment.seeds:
                work.run(seed)
                write(RESULTS / f"{work.name}.json", work.gather())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("experiments", nargs="*", default=EXPERIMENTS)
    parser.add_argument("-o", "--output", type=Path, default=Path("runs/paper"))
    options = parser.parse_args()
    main(list(options.experiments), options.output)
