"""What a training step of the linearised model costs, beside the same step of the model itself.

    python benchmarks/linearise.py [--repeats 9]

MiniLM, one batch of 32 movie reviews, LoRA r = 8, AdamW, one thread. These steps take turns in one process:

- ``lora``: forward, backward and optimiser step of the peft model, in training mode;
- ``linearised``: the same for ``ft.linearise(peft_model)``: a forward pass that carries tangents, and its backward
  pass;
- ``recorded``: a step of the model with SGD, with the bound that ``foretune train --certify`` records (docs/theory.md
  P3);
- ``hooks``: what the linear model would cost through the hooks that collect tangents: a forward pass and, for every
  output, a backward pass that stops at activations, before anything is trained.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import alternate, movie_run, ratio, save
from torch import nn

from foretune.linear import linearise
from foretune.tangents import layer_gradients, lora_layers
from foretune.tangents.head import outputs_of
from foretune.task import load_task
from foretune.train import GapRecorder, build_peft_model


def measure(classes: int, modules: list[str] | str, repeats: int) -> dict[str, Any]:
    """Seconds of every kind of step, and their ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        peft = {"type": "lora", "r": 8, "lora_alpha": 16, "target_modules": modules}
        task = load_task(movie_run(Path(scratch), classes, peft=peft))
    model = build_peft_model(task, task.candidates[0], 0)
    linear, layers = linearise(model), lora_layers(model)
    batch = task.collator([task.train[i] for i in range(32)])
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)

    def step(trained: nn.Module) -> None:
        trained.train()
        trained(**batch).loss.backward()
        optimiser.step()
        optimiser.zero_grad()

    def hooks() -> None:
        layer_gradients(model.eval(), layers, lambda: outputs_of(model, batch), batch["attention_mask"].bool())

    def recorded() -> None:
        watched.train()
        watched(**batch).loss.backward()
        with recorder.step(batch, sgd):
            sgd.step()
        sgd.zero_grad()

    watched = build_peft_model(task, task.candidates[0], 0)
    recorder = GapRecorder(linearise(watched), task.loss)
    sgd = torch.optim.SGD([p for p in watched.parameters() if p.requires_grad], 1e-3)
    works = {
        "lora": lambda: step(model),
        "linearised": lambda: step(linear),
        "recorded": recorded,
        "hooks": hooks,
    }
    alternate(1, **works)
    seconds = alternate(repeats, **works)
    assert recorder.reason is None
    return {
        "classes": classes,
        "modules": modules,
        "tokens": int(batch["input_ids"].shape[1]),
        "attention": task.model.config._attn_implementation,
        "seconds": seconds,
        "linearised_over_lora": ratio(seconds["linearised"], seconds["lora"]),
        "recorded_over_lora": ratio(seconds["recorded"], seconds["lora"]),
        "hooks_over_lora": ratio(seconds["hooks"], seconds["lora"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    steps = [
        measure(classes, modules, options.repeats)
        for classes in (2, 5)
        for modules in (["query", "value"], "all-linear")
    ]
    save("linearise", began, {"steps": steps})
