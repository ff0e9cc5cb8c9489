"""What collecting tangents costs, beside the passes it consists of and beside two other ways to a Jacobian.

    python benchmarks/tangents.py [--examples 656] [--repeats 3]

All run in one process on the same MiniLM, the same sentences and the same LoRA layers:

- ``floor``: a forward pass and, for every direction, a backward pass that stops at activations, down to the same layer;
  nothing is kept;
- ``jacrev + vmap``: ``torch.func`` over the LoRA parameters only (query and value, r = 8), with examples of one length
  in one batch;
- ``published script``: the algorithm of the paper's script, ``jacrev`` over all parameters, one example at a time,
  padded to 512 tokens.
"""

import argparse
import itertools
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from common import alternate, movie_run, ratio, save
from peft import get_peft_model
from torch import Tensor
from torch.func import functional_call, jacrev, vmap

from foretune import testing
from foretune.tangents import collect
from foretune.tangents.collect import select_layers
from foretune.tangents.head import head_names, watched
from foretune.tangents.lengths import alike_in_splits, lengths
from foretune.task import Task, load_task


def floor(task: Task, layers: list[str], directions: int) -> None:
    """The passes alone, over the same batches as ``collect``."""
    model = task.model.eval().requires_grad_(False)
    rows = [*task.train, *task.eval]
    leaves: list[Tensor] = []

    def start(_: Any, args: Any, output: Tensor) -> Tensor:
        if output.requires_grad:
            return output
        leaves.append(output.detach().requires_grad_())
        return leaves[-1]

    handles = [model.get_submodule(layer).register_forward_hook(start) for layer in layers]
    basis: Tensor | None = None
    for numbers in alike_in_splits(lengths(task.train), lengths(task.eval), max_examples=32):
        batch = {k: v for k, v in task.collator([rows[i] for i in numbers]).items() if k != "labels"}
        leaves.clear()
        with watched(model, head_names(model)) as watch:
            model(**batch)
            features = next(iter(watch.inputs.values()))
        basis = torch.linalg.qr(torch.randn(features.shape[1], directions))[0] if basis is None else basis
        outputs = features @ basis
        for c in range(directions):
            torch.autograd.grad(outputs[:, c].sum(), leaves, retain_graph=c + 1 < directions)
    for handle in handles:
        handle.remove()


def cost_of_collecting(classes: int, modules: list[str] | str, examples: int, repeats: int) -> dict[str, Any]:
    """Seconds of ``collect`` to disk, and of its passes alone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        train = round(examples * 256 / 656)
        task = load_task(movie_run(folder, classes, train=train, evaluation=examples - train))
        layers = list(select_layers(task.model, modules, head_names(task.model)))
        first = collect(task, modules)
        numbers = itertools.count()
        seconds = alternate(
            repeats,
            floor=lambda: floor(task, layers, first.num_directions),
            collect=lambda: collect(task, modules, directory=folder / f"{next(numbers)}"),
        )
    return {
        "classes": classes,
        "modules": modules,
        "examples": examples,
        "directions": first.num_directions,
        "mebibytes": first.num_bytes / 2**20,
        "seconds": seconds,
        "collect_over_floor": ratio(seconds["collect"], seconds["floor"]),
    }


def other_jacobians(repeats: int, together: int = 16) -> dict[str, Any]:
    """Seconds of Jacobians: ours, ``jacrev`` with ``vmap`` over LoRA parameters, the published algorithm."""
    with tempfile.TemporaryDirectory() as scratch:
        task = load_task(movie_run(Path(scratch), train=1000))
        eager = load_task(movie_run(Path(scratch), train=1000, model=_eager(Path(scratch))))
    peft_model = get_peft_model(task.model, task.candidates[0].peft_config()).eval()
    other = get_peft_model(eager.model, eager.candidates[0].peft_config()).eval()
    lengths = [len(row["input_ids"]) for row in task.train]
    common = max(set(lengths), key=lengths.count)  # vmap cannot build attention masks: examples without padding
    rows = [row for row in task.train if len(row["input_ids"]) == common][:together]
    together = len(rows)
    batch = {name: value for name, value in task.collator(rows).items() if name == "input_ids"}
    padded = task.tokenizer.pad(rows[:1], padding="max_length", max_length=512, return_tensors="pt")
    long = {name: padded[name] for name in ("input_ids", "attention_mask")}
    everything = {name: value.detach() for name, value in other.named_parameters()}
    lora = {name: value for name, value in everything.items() if "lora_" in name}

    def outputs(parameters: dict[str, Tensor], inputs: dict[str, Tensor]) -> Tensor:
        return functional_call(other, parameters, (), {k: v[None] for k, v in inputs.items()}).logits[0]

    def whole(parameters: dict[str, Tensor]) -> Tensor:
        return functional_call(other, parameters, (), long).logits[0]

    def ours() -> None:
        testing.ntk(peft_model, batch)

    def functional() -> None:
        vmap(jacrev(outputs), (None, 0))(lora, batch)

    def published() -> None:
        jacrev(whole)(everything)

    seconds = alternate(repeats, ours=ours, functional=functional, published=published)
    each = {"ours": together, "functional": together, "published": 1}
    per_example = {name: [t / each[name] for t in values] for name, values in seconds.items()}
    return {
        "examples": together,
        "tokens": int(batch["input_ids"].shape[1]),
        "seconds_per_example": per_example,
        "jacrev_vmap_lora_over_ours": ratio(per_example["functional"], per_example["ours"]),
        "published_script_over_ours": ratio(per_example["published"], per_example["ours"]),
        "note": "ours with sdpa attention, torch.func with eager attention; ours includes forming the NTK",
    }


def _eager(folder: Path) -> dict[str, str]:
    import yaml

    model = yaml.safe_load((folder / "run.yaml").read_text())["model"]
    return model | {"attn_implementation": "eager"}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=656)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    began = time.perf_counter()
    costs = [
        cost_of_collecting(classes, modules, options.examples, options.repeats)
        for classes in (2, 5)
        for modules in (["query", "value"], "all-linear")
    ]
    save("tangents", began, {"collect": costs, "others": other_jacobians(options.repeats)})
