"""``docs/paper.md`` and its pictures, from ``benchmarks/results/paper``.

python benchmarks/paper/document.py
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # not this folder: its names are common ones
    sys.path[0] = str(Path(__file__).parents[1])

from paper.claims import claims
from paper.layers import placements_section, tasks_section
from paper.notes import notes, overview, script_section
from paper.reading import DOCS, kind, model, paragraph
from paper.results import Result, read_all
from paper.sweeps import descent_section, strength_section


def document(results: dict[str, Result]) -> str:
    """The page."""
    lines = [
        "# The paper's questions",
        "",
        *paragraph(
            "*The paper* is Rahimi Afzal, Esmaeilbeig, Soltanalian and Ohannessian, *Linearization Explains "
            "Fine-Tuning in Large Language Models*, NeurIPS 2025, "
            "[arXiv:2602.08239](https://arxiv.org/abs/2602.08239). This page asks its questions again with exact "
            "tools. How linear does the [proximal term](glossary.md#proximal-term) make a fine-tune, and what does "
            "that cost? Does the [condition number](glossary.md#condition-number-κ) of the kernel tell which layers or "
            "tasks will do well?"
        ),
        *paragraph(
            f"The models are {' and '.join(dict.fromkeys(map(model, results.values())))}, classified from the mean of "
            "the tokens, with LoRA of rank 8. P1 to P10 are the statements of [the theory](theory.md). "
            "`python benchmarks/paper/run.py` measures everything, and `python benchmarks/paper/document.py` writes "
            "this page from `benchmarks/results/paper`. The settings are in `benchmarks/paper/*.yaml`."
        ),
        *claims(results),
        *overview(results),
        *paragraph(
            "**Which λ?** The paper's theory sums the loss over n examples, and `Trainer` averages it. The λ of "
            "`proximal` belongs to the mean: it is λ/n of the sum's λ for cross-entropy and 2λ/(nC) for `MSELoss` "
            "(`foretune.linear.sum_strength` converts). Under AdamW the term is decoupled, θ ← θ − ηλ(θ − θ0), so only "
            "ηλ matters, as for `weight_decay`."
        ),
        *strength_section(kind(results, "strength")),
        *descent_section(kind(results, "descent")),
        *placements_section(results["placements"]),
        *tasks_section(results["tasks"]),
        *script_section(),
        *notes(results),
    ]
    return "\n".join(lines).rstrip() + "\n"


if __name__ == "__main__":
    path = DOCS / "paper.md"
    path.write_text(document(read_all()), encoding="utf-8")
    print(f"wrote {path}")
