"""Of ``docs/paper.md``: what was run and what was not, and how the published script differs."""

from paper.reading import paragraph, seeds, standard_error, table
from paper.results import EXPERIMENTS, Result
from paper.sweeps import labelled

SCRIPT = (
    "**Kernel.** The script computes `J1 · (J2 / (|J2| + 1e-8))ᵀ`. The second factor is the sign of the Jacobian, so "
    "this is not the NTK. `published_kernel` in `benchmarks/paper/ntks.py` computes the same matrix for comparison, "
    "of the first 32 rows and of the LoRA parameters alone, as the script does. Inputs here are tokens, and padding is "
    "masked. The script feeds the output of the embedding in again and attends to padding.",
    "**λ.** The script passes λ as `weight_decay` to `Trainer`, together with an Adam that has no decay of its own. "
    "`Trainer` uses that Adam, so λ has no effect on the training. Here λ is decoupled decay toward the start "
    "(`foretune.proximal`).",
    "**Linearised model.** The script's is a finite difference without gradients, so training moves only an offset of "
    "the logits. Here it is the exact first-order model (`foretune.linearise`). Under AdamW it is taken at the trained "
    "θ. Under gradient descent it is also trained by the same steps.",
    "**Relative difference.** The script's is ‖f−f̄‖/‖f‖. f contains f0, so this page has ‖f−f̄‖/‖f−f0‖ beside it.",
)


def script_section() -> list[str]:
    """How the published script differs, where that matters for the claims."""
    head = (
        "The paper's script was read and not run, because its kernel differentiates all 125 million parameters. These "
        "differences matter for the claims:"
    )
    items = [line for text in SCRIPT for line in paragraph(f"- {text}", "  ")[:-1]]
    return ["## The published script", "", *paragraph(head), *items, ""]


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
        "The last column is the standard error, in points, of an accuracy of 75% on so few evaluation texts. Runs that "
        "differ in λ share their texts and their start, so differences between them are less uncertain."
    )
    return ["## What was run", "", *table([*head, "±"], rows), *paragraph(note)]


def notes(results: dict[str, Result]) -> list[str]:
    """What was not run, and how long the rest took."""
    missing = {name: result["missing"] for name, result in results.items() if result["missing"]}
    hours = sum(result["wall_seconds"] for result in results.values()) / 3600
    runs = sum(len(result["runs"]) for result in results.values())
    cut = (
        "The paper's own model and data, RoBERTa-base and GLUE, were not run, because no model hub could be reached. "
        "The files `benchmarks/paper/glue-*.yaml` describe the same experiments on them, and a test loads these files "
        "with a tiny RoBERTa. The second model and the selective rule have fewer runs, as [What was "
        "run](#what-was-run) says, and placements and tasks have MiniLM-L6 only. Other learning rates, ranks and sizes "
        "of the training set were not tried. Under AdamW no linearised model was trained (`foretune train "
        "--linearised` would)."
    )
    absent = [f"`{name}`" for name in EXPERIMENTS if name not in results]
    if absent:
        cut += f" These have a YAML file, but there was no time to run them: {', '.join(absent)}."
    if missing:
        listed = ", ".join(f"{count} of {name}" for name, count in missing.items())
        cut += f" Runs that the YAML files ask for and that are missing: {listed}. `run.py` goes on with them."
    return [
        "## What was not run, and how long the rest took",
        "",
        *paragraph(cut),
        *paragraph(
            f"{runs} runs with their measurements took {hours:.1f} hours on a share of one core. A run that several "
            "experiments share is counted in each of them."
        ),
    ]
