"""What people fine-tune, as a distribution to draw from: written down before anything was drawn from it.

A draw has a model with a head, a source, sizes, a schedule, and six candidates. Everything is drawn independently, and
all but the model again while a run would take longer than ``LIMIT`` seconds on two cores.

======================= ============================================================================================
source                  any of 29, equally often; nine of them are sealed
model and head          half MiniLM with the default head (one in six of them MPNet-base instead), a quarter MiniLM with
                        mean pooling, a quarter the decoder SmolLM2-135M
training texts          64 to 4,000, log-uniform; evaluation texts 100 to 600, log-uniform
largest length          64 or 128 tokens
batch                   4 to 64
epochs                  1 to 10, most often 3
schedule                linear (half), cosine, constant, constant with warm-up, polynomial
warm-up                 none (half), or 3, 6 or 10% of the steps
weight decay            none (half), .01 or .1
optimiser               AdamW (eight in ten), Adafactor, RMSprop
dropout in adapters     none (half), .05 or .1
learning rate           1e-5 to 1e-2, log-uniform, for every candidate
rank                    1 to 64, most often 8 and 16, for every candidate
alpha                   r, 2r, 16 or 32, for every candidate; rsLoRA for one in eight
placement               query and value (half), all linear layers (a quarter), the whole attention, the MLP, or query
                        and value of the upper third, for every candidate
======================= ============================================================================================
"""

import json
import math
import random
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from truth.grid import NAMES
from wild.texts import OPEN, SEALED, build

LIMIT = 75.0  # seconds
CANDIDATES = 6
REGRESSION = ("amazon", "editorials")
PAIRS = ("questions", "beliefs", "evidence", "steps", "dialogues", "reasons")
TOKENS_PER_SECOND = {
    "minilm": 1600,
    "mpnet": 300,
    "smollm2": 230,
}  # of training; evaluation is three times as fast


@dataclass(frozen=True)
class Draw:
    """A fine-tune with six candidates.

    Attributes:
        number: Number of the draw, which is the seed of all random choices.
        source: Name of the texts, see ``wild.texts``.
        model: Name of the model, see ``models``.
        pooling: Pooling of the run file: ``model`` for the model's own head, or ``mean``.
        sizes: Keys of the ``data`` section: numbers of texts and the largest length.
        training: Keys of the ``training`` section.
        dropout: Dropout in the adapters.
        candidates: Candidates of the run file.
        seeds: Seeds that are really trained.
    """

    number: int
    source: str
    model: str
    pooling: str
    sizes: dict[str, int]
    training: dict[str, Any]
    dropout: float
    candidates: list[dict[str, Any]]
    seeds: list[int]

    @property
    def sealed(self) -> bool:
        """Whether results of this draw may be looked at only once, at the end."""
        return self.source in SEALED

    def run_file(self, model_path: str) -> dict[str, Any]:
        """Return the content of ``run.yaml``."""
        names = NAMES[self.model]
        return {
            "model": {"path": model_path, "pooling": self.pooling}
            | {"task": "regression" if self.source in REGRESSION else "classification"},
            "data": {"train": "texts/train.jsonl", "eval": "texts/eval.jsonl", "label": "label"}
            | {"text": ["text", "sentence"] if self.source in PAIRS else "text"}
            | self.sizes,
            "peft": {"type": "lora", "r": 8, "lora_alpha": 16, "lora_dropout": self.dropout}
            | {"target_modules": names.query_value},
            "training": {"per_device_eval_batch_size": 32, "seed": self.seeds[0]} | self.training,
            "candidates": self.candidates,
        }

    def to_json(self) -> dict[str, Any]:
        """Return the draw as a dictionary that can be written as JSON."""
        return asdict(self)


def draw(number: int, texts: Path) -> Draw:
    """Draw a fine-tune.

    Args:
        number: Its number; draws with the same number are the same.
        texts: Folder of the texts, where those of the source are built.
    """
    dice = random.Random(f"wild {number}")
    model, pooling = _model(dice)
    while True:
        source = dice.choice([*OPEN, *SEALED])
        train, evaluation = (round(_log_uniform(dice, *bounds)) for bounds in ((64, 4000), (100, 600)))
        length, batch = dice.choice((64, 128)), dice.choice((4, 8, 8, 16, 16, 32, 64))
        epochs = dice.choice((1, 2, 3, 3, 3, 4, 5, 8, 10))
        folder = texts / source
        if not folder.exists():
            build(source, folder)
        rows, tokens = _size(folder / "train.jsonl", length)
        train, steps = min(train, rows), epochs * math.ceil(min(train, rows) / batch)
        evaluations = epochs if epochs > 2 else 4
        work = tokens * (train * epochs + evaluation * (evaluations + 1) / 3)
        settings = {
            "num_train_epochs": epochs,
            "per_device_train_batch_size": batch,
            **({} if epochs > 2 else {"eval_strategy": "steps", "eval_steps": max(steps // 4, 1)}),
            "lr_scheduler_type": dice.choice(("linear",) * 4 + ("cosine",) * 2 + ("constant", "polynomial")),
            "warmup_steps": dice.choice((0, 0, 0, 0.03, 0.06, 0.1)),
            "weight_decay": dice.choice((0.0, 0.0, 0.01, 0.1)),
            "optim": dice.choice(("adamw_torch",) * 8 + ("adafactor", "rmsprop")),
        }
        if settings["lr_scheduler_type"] == "constant" and settings["warmup_steps"]:
            settings["lr_scheduler_type"] = "constant_with_warmup"
        dropout = dice.choice((0.0, 0.0, 0.05, 0.1))
        candidates = [{"name": f"c{i}", **_candidate(dice, model)} for i in range(CANDIDATES)]
        seeds = [number, number + 1000] if dice.random() < 1 / 3 else [number]
        if work <= LIMIT * TOKENS_PER_SECOND[model]:
            sizes = {"max_length": length, "train_samples": train, "eval_samples": evaluation}
            return Draw(number, source, model, pooling, sizes, settings, dropout, candidates, seeds)


def _model(dice: random.Random) -> tuple[str, str]:
    kind = dice.random()
    if kind < 0.25:
        return "smollm2", "model"
    if kind < 0.5:
        return "minilm", "mean"
    return "mpnet" if dice.random() < 1 / 6 else "minilm", "model"


def _candidate(dice: random.Random, model: str) -> dict[str, Any]:
    names = NAMES[model]
    rank = dice.choice((1, 2, 4, 8, 8, 8, 16, 16, 32, 64))
    peft: dict[str, Any] = {"r": rank, "lora_alpha": dice.choice((rank, 2 * rank, 2 * rank, 16, 32))}
    if dice.random() < 1 / 8:
        peft["use_rslora"] = True
    upper = list(range(2 * names.layers // 3, names.layers))
    peft |= dice.choice(
        (
            *({"target_modules": names.query_value},) * 4,
            *({"target_modules": "all-linear"},) * 2,
            {"target_modules": ATTENTION[model]},
            dice.choice(
                ({"target_modules": names.mlp}, {"target_modules": names.query_value, "layers_to_transform": upper})
            ),
        )
    )
    return {"peft": peft, "training": {"learning_rate": float(f"{_log_uniform(dice, 1e-5, 1e-2):.2g}")}}


ATTENTION = {
    "minilm": ["query", "key", "value", "attention.output.dense"],
    "mpnet": ["attn.q", "attn.k", "attn.v", "attn.o"],
    "smollm2": ["q_proj", "k_proj", "v_proj", "o_proj"],
}


def _log_uniform(dice: random.Random, low: float, high: float) -> float:
    return math.exp(dice.uniform(math.log(low), math.log(high)))


def _size(path: Path, length: int) -> tuple[int, float]:
    """Number of rows, and about how many tokens the first thousand have on average."""
    lines = path.read_text(encoding="utf-8").splitlines()
    texts = [[value for key, value in json.loads(line).items() if key != "label"] for line in lines[:1000]]
    return len(lines), sum(min(sum(map(len, text)) / 4.5 + 3, length) for text in texts) / len(texts)
