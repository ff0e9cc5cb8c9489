"""The paper's claims with what came out here."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from statistics import fmean

import torch
from paper.layers import averaged, choices, compared, placement_rows, predictor
from paper.reading import (
    by_seed,
    change,
    correlation,
    kind,
    mean,
    model,
    paragraph,
    seeds,
    selective,
    spread,
    table,
    verdict,
    where,
)
from paper.results import Result
from paper.sweeps import with_bounds
from tables import Row

from foretune.kernel.subsets import perturbation
from foretune.linear import sum_strength

SIGNS = {"eval_metric": -1, "train_loss": 1}  # of the correlations of κ that the paper claims
LINEAR = 0.1  # a linearisation that misses no more of what training changed is called nearly exact
STILL = 0.005  # a rise of the relative gap that counts as none


def claims(results: dict[str, Result]) -> list[str]:
    """Experiment d: what the paper says, and what came out here."""
    rule = (
        "*Holds here* means that it came out so every time: in every run, or, for accuracy, in every seed's mean over "
        "tasks. For correlations it means that the 95% interval lies on the claimed side of 0. *Not found here* means "
        "that the interval includes 0. With so few placements and tasks that does not refute a claim."
    )
    spread_rule = (
        "The numbers behind each verdict follow. They are means over tasks, ± the standard deviation of that mean over "
        "seeds. Where there is no ± there was one seed."
    )
    strength = [result for result in kind(results, "strength") if not selective(result)]
    descent = [result | {"runs": with_bounds(result)} for result in kind(results, "descent")]
    rows = [
        *strength_claims(strength, descent),
        bounds_claim([row for result in descent for row in result["runs"]]),
        *kernel_claims(results["placements"], results["tasks"]),
    ]
    listed = [line for i, (claim, _, numbers) in enumerate(rows, 1) for line in item(i, f"*{claim}.* {numbers}.")]
    return [
        "## The paper's claims",
        "",
        *table(["", "claim", "verdict"], [[str(i), claim, found] for i, (claim, found, _) in enumerate(rows, 1)]),
        *paragraph(rule),
        *paragraph(spread_rule),
        *listed,
        "",
    ]


def item(number: int, text: str) -> list[str]:
    """An item of a numbered list, wrapped."""
    return paragraph(f"{number}. {text}", " " * len(f"{number}. "))[:-1]


def said(outcomes: Sequence[bool]) -> str:
    """A verdict on a claim that was tested several times."""
    if all(outcomes):
        return "**holds here**"
    return "**does not hold everywhere**" if any(outcomes) else "**does not hold here**"


def told(results: Sequence[Result], tell: Callable[[Result], str]) -> str:
    """What a function says of every model."""
    return ". ".join(f"{model(result)}: {tell(result)}" for result in results)


def ends(result: Result) -> tuple[float, float]:
    """The smallest and the largest λ."""
    return min(result["settings"]["strengths"]), max(result["settings"]["strengths"])


def at(result: Result, strength: float, key: str, form: str = ".2f", scale: float = 1) -> str:
    """A column at one λ."""
    return spread(by_seed(where(result["runs"], strength=strength), key), form, scale)


def path(result: Result, key: str, form: str = ".2f", last: float | None = None) -> str:
    """A column from the smallest λ to the largest, or to another."""
    first, largest = ends(result)
    return f"{at(result, first, key, form)} → {at(result, largest if last is None else last, key, form)}"


def steps(results: Sequence[Result], key: str) -> list[float]:
    """By how much a column grows from one λ to the next, for every model, task and seed."""
    return [
        later[key] - earlier[key]
        for result in results
        for task in result["settings"]["tasks"]
        for seed in seeds(result["runs"])
        for earlier, later in itertools.pairwise(
            sorted(where(result["runs"], task=task, seed=seed), key=lambda row: row["strength"])
        )
    ]


def fallen(changes: Sequence[float]) -> str:
    """In how many steps of λ a number fell, and how far it rose at most."""
    rise = f", and its largest rise is {max(changes):.1g}" if max(changes) > 0 else ""
    return f"falls in {sum(each < 0 for each in changes)} of {len(changes)} steps from one λ to the next{rise}"


def gap(result: Result, strength: float) -> float:
    """The share of what training changed that the linearisation misses, on average."""
    return mean(where(result["runs"], strength=strength), "nonlinearity")


def strength_claims(strength: Sequence[Result], descent: Sequence[Result]) -> list[list[str]]:
    """Claims about λ."""
    bounded = [row for result in descent for row in result["runs"]]
    beyond = sum(row["distance"] > row["p1"] for row in bounded)
    nearer = steps([*strength, *descent], "distance")
    closer = steps(strength, "nonlinearity") + steps(descent, "nonlinearity_run")
    costs = [change(result, "eval_metric", nearly_free(result), 50) for result in strength]
    texts = strength[0]["settings"]["run"]["data"]["train_samples"]
    summed = sum_strength(0.5, texts, 2, "cross_entropy")
    return [
        [
            "The proximal term keeps the fine-tuned model near the pretrained one, within a bound (P1)",
            said([beyond == 0, *(each < 0 for each in nearer)]),
            f"The distance ‖δ‖ of the adapters {fallen(nearer)}. With AdamW it goes from the smallest λ to the largest "
            f"as follows. {told(strength, lambda result: path(result, 'distance'))}. With gradient descent {beyond} of "
            f"{len(bounded)} runs go beyond P1, which is {fmean(row['p1'] / row['distance'] for row in bounded):.1f} "
            "times the true distance on average",
        ],
        [
            "The gap between fine-tuning and its linearisation shrinks as λ grows",
            said([each < STILL for each in closer]),
            f"The gap {fallen(closer)} (a rise below {STILL} counts as none). From the smallest λ to the largest, with "
            f"AdamW: {told(strength, lambda result: path(result, 'nonlinearity'))}. The same as KL in nats: "
            f"{told(strength, lambda result: path(result, 'divergence', '.2g'))}. With gradient descent, against the "
            f"linearised run: {told(descent, lambda result: path(result, 'nonlinearity_run'))}",
        ],
        [
            "The largest λ of the paper's sweep (0.5, 5, 50) makes fine-tuning nearly linear",
            said([gap(result, 50) <= LINEAR for result in (*strength, *descent)]),
            f"A run is called nearly linear if the linearisation f̄ misses at most {LINEAR:g} of what training "
            "changed. With AdamW and λ of the mean loss, this share goes from λ = 0 to λ = 50 as follows. "
            f"{told(strength, lambda result: path(result, 'nonlinearity', last=50))}. It is below {LINEAR:g}: "
            f"{told(strength, reached)}. With gradient descent and λ of the sum, as in the paper's theory: "
            f"{told(descent, lambda result: path(result, 'nonlinearity', last=50))}. It is below {LINEAR:g}: "
            f"{told(descent, reached)}. λ = 0.5 of the first sweep is λ = {summed:g} in the convention of the second",
        ],
        [
            "Linearity costs accuracy (CoLA 80.4 at λ = 5, 74.6 at λ = 50)",
            said([value < 0 for values in costs for value in values]),
            "Change of the accuracy in points. " + told(strength, cost),
        ],
        [
            "Fine-tuning is explained by its linearisation",
            explained(strength),
            told(strength, lambda result: "; ".join(explanation(result, each) for each in ends(result))),
        ],
    ]


def reached(result: Result) -> str:
    """The λ from which on a linearisation is nearly exact."""
    enough = [strength for strength in result["settings"]["strengths"] if gap(result, strength) <= LINEAR]
    return f"from λ = {min(enough):g} on" if enough else "at no λ that was tried"


def nearly_free(result: Result) -> float:
    """The λ from which the paper counts the cost of the next one, or none at all where it was not run."""
    return 5.0 if 5 in result["settings"]["strengths"] else 0.0


def cost(result: Result) -> str:
    """What λ costs in accuracy."""
    pairs = [(nearly_free(result), 50.0), ends(result)]
    return ", ".join(
        f"λ = {one:g} → {other:g}: {spread(change(result, 'eval_metric', one, other), '+.1f', 100)}"
        for one, other in pairs
    )


def explained(results: Sequence[Result]) -> str:
    """Whether the linearisation is nearly exact without the term, or with the strongest."""
    free, held = ([gap(result, ends(result)[i]) <= LINEAR for result in results] for i in (0, 1))
    return "**only with a strong term**" if all(held) and not any(free) else said(free)


def explanation(result: Result, strength: float) -> str:
    """What a linearisation misses at one λ."""
    part = where(result["runs"], strength=strength)
    pairs = zip(by_seed(part, "eval_metric"), by_seed(part, "metric_linearised"), strict=True)
    return (
        f"at λ = {strength:g} f̄ misses {at(result, strength, 'nonlinearity')} of what training changed, and is "
        f"{spread([true - linear for true, linear in pairs], '.1f', 100)} points less accurate than f at the same θ"
    )


def bounds_claim(rows: Sequence[Row]) -> list[str]:
    """P2 and P3."""
    useless = sum(row["p2"] > row["distance"] for row in rows)
    violated = sum(row["gap"] > row["gap_bound"] for row in rows)
    tight = [row["gap_bound"] / row["gap"] for row in rows]
    return [
        "A bound in λ, known before training, limits the gap (P2)",
        f"**says nothing** in {useless} of {len(rows)} runs",
        "A bound says nothing where it is above the distance ‖δ‖ that the run moved. P2 is, although it is only "
        f"estimated. A bound that is computed along the run (P3) is {fmean(tight):.2f} times the truth on average and "
        f"{max(tight):.2f} times at worst, and was violated in {violated} of {len(tight)} runs",
    ]


def kernel_claims(placements: Result, tasks: Result) -> list[list[str]]:
    """Claims about the kernel at initialisation."""
    kernels = [row for result in (placements, tasks) for row in result["kernels"]]
    positive = [math.isfinite(row["condition_number"]) for row in kernels]
    asymmetry = [row["asymmetry_published"] for row in kernels]
    one = perturbation(*(torch.tensor([[x]]).double() for x in (1.0, 3.0)), torch.ones(1).double(), 1.0)
    bound, truth = 1 / (1 - one.absolute), one.residual.after / one.residual.before
    across, over_tasks = averaged(tasks), []
    for key, sign in (("train_loss", 1), ("eval_metric", -1)):
        pair = [row["condition_number"] for row in across], [row[key] for row in across]
        over_tasks.append(
            [f"**{verdict(*pair, sign)}**", f"Spearman correlation {correlation(*pair)} over {len(across)} tasks"]
        )
    kappa = {key: over_placements(placements, "condition_number", {key: sign}) for key, sign in SIGNS.items()}
    return [
        [
            "Fine-tuning is learning with a positive definite NTK",
            said(positive),
            f"The [NTK](glossary.md#kernel-ntk) is positive definite to working precision in {sum(positive)} of "
            f"{len(positive)} kernels. The published script computes another matrix, which is not symmetric: ‖K − "
            f"Kᵀ‖/‖K‖ is {min(asymmetry):.2f} to {max(asymmetry):.2f}",
        ],
        [
            "The layer-selection theorem: adding layers T to S raises the training residual at most 1/(1−η) times",
            said([True]) if truth <= bound else "**needs η < 1**",
            f"For K_S = 1, K_T = 3 and σ = 1, η is {one.absolute:g} and the bound is {bound:g} times the residual, "
            f"while the truth is {truth:g} times. `docs/theory.md P9` says what holds for any η",
        ],
        ["Layers with a lower κ at initialisation reach a higher accuracy", *kappa["eval_metric"]],
        ["Layers with a lower κ at initialisation reach a lower training loss", *kappa["train_loss"]],
        [
            "A simulated fine-tune orders layers by both (our claim)",
            *over_placements(placements, "forecast", dict.fromkeys(SIGNS, 1)),
        ],
        ["Tasks with a lower κ reach a lower training loss", *over_tasks[0]],
        ["Tasks with a lower κ reach a higher accuracy", *over_tasks[1]],
    ]


def over_placements(result: Result, name: str, signs: dict[str, int]) -> tuple[str, str]:
    """Verdicts and numbers of a predictor over placements, with the sign that it should have for each outcome."""
    parts, verdicts = [], []
    labels = {"eval_metric": "accuracy", "train_loss": "training loss"}
    for task in compared(result):
        for words, strength in choices(result, task):
            rows = placement_rows(result, task, strength)
            for outcome, sign in signs.items() if strength is not None else ():
                pair = predictor(rows, name, outcome), [row[outcome] for row in rows]
                verdicts.append(verdict(*pair, sign))
                parts.append(f"{task}, {words}{f', {labels[outcome]}' if len(signs) > 1 else ''}: {correlation(*pair)}")
    counts = Counter(verdicts)
    found = "; ".join(f"**{each}** ({count} of {len(verdicts)})" for each, count in counts.items())
    return found, f"Spearman correlations: {'; '.join(parts)}"
