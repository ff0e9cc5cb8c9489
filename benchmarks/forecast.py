"""What a forecast and the beginning of a real run cost, beside training the same candidate: seconds and peak memory.

    python benchmarks/forecast.py [--repeats 2]

MiniLM, 256 training and 400 evaluation sentences, 8 epochs of batches of 32. Forecast and training use the same
``Trainer`` and evaluate after every epoch. They take turns in one process. Peak memory is that of a separate process
for each part. A forecast begins the real run only of candidates that may collapse.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from common import alternate, movie_run, ratio, save

from foretune.forecast.beginning import begin
from foretune.forecast.forecast import forecast
from foretune.tangents import Tangents, collect
from foretune.task import Candidate, Task, load_task
from foretune.train import build_peft_model, loop_arguments, run_trainer

CANDIDATES = [
    {"name": "query-value"},
    {"name": "all-linear", "peft": {"target_modules": "all-linear"}},
]

STEPS = 64  # of a run


def train(task: Task, candidate: Candidate) -> None:
    """The real fine-tune."""
    with tempfile.TemporaryDirectory() as scratch:
        args = candidate.training_arguments(scratch, **loop_arguments({}), save_strategy="no")
        model = build_peft_model(task, candidate, candidate.seed)
        run_trainer(model, args, task.train, task.eval, task.compute_metrics, collator=task.collator)


def predict(task: Task, tangents: Tangents, candidate: Candidate) -> None:
    """The whole forecast: a simulated seed, the network at its weights, the kernel's figures."""
    forecast(tangents, task, [candidate])


def start(task: Task, candidate: Candidate) -> None:
    """The beginning of the real run, which a forecast makes if the candidate may collapse."""
    begin(task, candidate, [0.0] * STEPS)


def peak_bytes(folder: Path, part: str, name: str) -> dict[str, int]:
    """Largest resident size of a process that does one part only, and its size before it began that part."""
    command = [sys.executable, __file__, "--part", part, "--candidate", name, "--folder", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def one_part(folder: Path, part: str, name: str) -> None:
    """Do one part and print the peak; this runs in a child process."""
    task = load_task(folder / "run.yaml", [name])
    before = high_water()
    if part == "train":
        train(task, task.candidates[0])
    else:
        tangents = collect(task, "all-linear", directory=folder / "tangents")
        predict(task, tangents, task.candidates[0])
    print(json.dumps({"loaded": before, "peak": high_water()}))


def high_water() -> int:
    """Largest resident size of this process in bytes (Linux; ``ru_maxrss`` would include the parent's)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


def main(repeats: int) -> None:
    """Time all parts, measure their memory and write the result."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        task = load_task(movie_run(folder, candidates=CANDIDATES))
        tangents = collect(task, "all-linear", directory=folder / "tangents")
        results: dict[str, Any] = {}
        for candidate in task.candidates:
            predict(task, tangents, candidate)  # reads the tangents from disk once
            seconds = alternate(
                repeats,
                train=lambda c=candidate: train(task, c),  # type: ignore[misc]
                forecast=lambda c=candidate: predict(task, tangents, c),  # type: ignore[misc]
                begin=lambda c=candidate: start(task, c),  # type: ignore[misc]
            )
            results[candidate.name] = {
                "seconds": seconds,
                "forecast_over_train": ratio(seconds["forecast"], seconds["train"]),
                "begin_over_train": ratio(seconds["begin"], seconds["train"]),
                "peak_bytes": {part: peak_bytes(folder, part, candidate.name) for part in ("train", "forecast")},
            }
        collected = {"seconds": tangents.seconds, "directions": tangents.num_directions, "bytes": tangents.num_bytes}
        save("forecast", began, {"collect": collected, "candidates": results})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--part", choices=["train", "forecast"], help=argparse.SUPPRESS)
    parser.add_argument("--candidate", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part:
        one_part(options.folder, options.part, options.candidate)
    else:
        main(options.repeats)
