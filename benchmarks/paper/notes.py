"""What was run, what was cut, and what was done otherwise than in the published script."""

from paper.reading import paragraph, seeds, standard_error, table
from paper.results import EXPERIMENTS, Result
from paper.sweeps import labelled

SCRIPT = (
    "Its kernel is `J1 · (J2 / (|J2| + 1e-8))ᵀ`: the signs of the second Jacobian. `published_kernel` in "
    "`benchmarks/paper/ntks.py` is that, of the first 32 rows and the LoRA parameters alone, as there. Inputs here "
    "are tokens with padding masked; the script feeds the embedding's output in again, and attends to padding.",
    "λ is passed as `weight_decay` beside an Adam without decay of its own, which `Trainer` then uses: it has no "
    "effect on that training. Here it is decoupled decay toward the start (`foretune.proximal`).",
    "Its linearised model is a finite difference without gradients, so that training moves an offset of the logits. "
    "Here it is the exact first-order model (`foretune.linearise`): at the trained θ under AdamW, and trained by the "
    "same steps under gradient descent.",
    "Its relative difference is ‖f−f̄‖/‖f‖. Beside it here is ‖f−f̄‖/‖f−f0‖, because f contains f0.",
)


def script_section() -> list[str]:
    """What in the published script bears on the claims."""
    head = "It was read, not run: its kernel differentiates all 125 million parameters. What bears on the claims, and "
    items = [line for text in SCRIPT for line in paragraph(f"- {text}", "  ")[:-1]]
    return ["## The published script", "", *paragraph(head + "what was done here instead:"), *items, ""]


def overview(results: dict[str, Result]) -> list[str]:
    """What was run: every experiment with its model, sizes and seeds."""
    rows = []
    for name, result in results.items():
        settings, data = result["settings"], result["settings"]["run"]["data"]
        rows.append(
            [
                f"`{name}`",
                labelled(result),
                {"training": "AdamW, cross-entropy", "descent": "gradient descent, squared loss"}[settings["measures"]],
                str(len(settings["tasks"])),
                ", ".join(f"{strength:g}" for strength in settings["strengths"]),
                str(len(settings["placements"])),
                ", ".join(map(str, seeds(result["runs"]))),
                f"{data['train_samples']} / {data['eval_samples']}",
                str(len(result["runs"])),
                f"{standard_error(result):.1f}" if settings["measures"] == "training" else "",
            ]
        )
    head = ["experiment", "model", "training", "tasks", "λ", "placements", "seeds", "texts: train / eval", "runs"]
    note = (
        "The last column is the standard error, in points, of an accuracy of 75% on so few evaluation texts. "
        "Differences between λ are on the same texts and from the same start, so they are known better than that."
    )
    return ["## What was run", "", *table([*head, "±"], rows), *paragraph(note)]


def notes(results: dict[str, Result]) -> list[str]:
    """What was left out, and what the rest took."""
    missing = {name: result["missing"] for name, result in results.items() if result["missing"]}
    hours = sum(result["wall_seconds"] for result in results.values()) / 3600
    runs = sum(len(result["runs"]) for result in results.values())
    cut = (
        "RoBERTa-base and GLUE: no model hub could be reached. `benchmarks/paper/glue-*.yaml` are the same "
        "experiments on them, and their loading is tested with a tiny RoBERTa. Experiments on a second model and "
        "with the selective rule were cut to what the first table says, and placements and tasks to MiniLM-L6. Other "
        "rates, ranks and sizes of the training set were not tried, nor were linearised models trained separately "
        "under AdamW (`foretune train --linearised`)."
    )
    absent = [f"`{name}`" for name in EXPERIMENTS if name not in results]
    if absent:
        cut += f" Not run for time, though there is a YAML file: {', '.join(absent)}."
    if missing:
        listed = ", ".join(f"{count} of {name}" for name, count in missing.items())
        cut += f" Cells that the YAML files ask for and that were not done: {listed}; `run.py` goes on with them."
    return [
        "## What was cut, and what the rest took",
        "",
        *paragraph(cut),
        *paragraph(
            f"{runs} runs with their measurements took {hours:.1f} hours on a share of one core; a cell that "
            "experiments share is counted in each. Correlations rest on few points: read their intervals."
        ),
    ]
