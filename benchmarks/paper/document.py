"""``docs/paper.md`` and its pictures from the results: every number in them comes from the JSON files.

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
        "# The paper's experiments",
        "",
        *paragraph(
            "*The paper* is Rahimi Afzal, Esmaeilbeig, Soltanalian and Ohannessian, *Linearization Explains "
            "Fine-Tuning in Large Language Models*, NeurIPS 2025, "
            "[arXiv:2602.08239](https://arxiv.org/abs/2602.08239). Its questions, asked again with exact tools on "
            f"models and texts that arrive as packages: {' and '.join(dict.fromkeys(map(model, results.values())))}, "
            "classified from the mean of the tokens, LoRA of rank 8. Reproduce with `python benchmarks/paper/run.py` "
            "and `python benchmarks/paper/document.py`; numbers and environment are in "
            "`benchmarks/results/paper/*.json`, settings in `benchmarks/paper/*.yaml`. P1 to P10 are those of "
            "[bounds.md](bounds.md)."
        ),
        *overview(results),
        *claims(results),
        *paragraph(
            "**λ.** The paper's theory has the sum of the losses over n examples, `Trainer` their mean: the λ of "
            "`proximal` goes with the mean, and is λ/n of the sum's for cross-entropy, 2λ/(nC) for `MSELoss` "
            "(`foretune.linear.sum_strength` converts). Under AdamW the term is decoupled, θ ← θ − ηλ(θ − θ0), so "
            "that only ηλ matters, as for `weight_decay`."
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
