"""Rules that look at neither the data nor the model: every selector has to beat them."""

import math
from pathlib import Path

from truth.predictors import Predictor, Scores, scored
from truth.selection import adapted, linear_layers

from foretune.demo.data import uniform
from foretune.task import Candidate, Task
from foretune.task.matching import adaptation

FULL_RATE = 2e-5  # the customary one for encoders of BERT's kind (2e-5 to 5e-5, arXiv 1810.04805)
LORA_RATE = 10 * FULL_RATE


def parameters(task: Task, folder: Path) -> Scores:
    """More trainable parameters first."""
    return scored(task, lambda candidate: adaptation(task.model, candidate, candidate.name).num_trainable)


def without_regret(task: Task, folder: Path) -> Scores:
    """Adapt all weight matrices, at ten times the learning rate of full fine-tuning.

    "LoRA Without Regret" (Schulman and Thinking Machines Lab, 2025, thinkingmachines.ai/blog/lora) says that adapters
    belong on every layer, above all on those with the most parameters, and that the best rate is about ten times that
    of full fine-tuning and does not depend on the rank. Here candidates are ordered by the share of the linear layers'
    weights that they adapt. Among those with the same share, the one whose rate is nearest to 2e-4 on a logarithmic
    scale comes first. Any rate from 2e-5 to 5e-5 for full fine-tuning gives the same order on this benchmark.
    """
    total = sum(layer.weight.numel() for layer in linear_layers(task).values())

    def rank(candidate: Candidate) -> float:
        share = sum(module.num_inputs * module.num_outputs for module in adapted(task, candidate)) / total
        rate = float(candidate.training.get("learning_rate", 5e-5))
        return share - 1e-4 * abs(math.log(rate / LORA_RATE))  # too small to change the order of two shares

    return scored(task, rank)


def always_rslora(task: Task, folder: Path) -> Scores:
    """RsLoRA with the largest rank; then LoRA, larger ranks first.

    rsLoRA (arXiv 2312.03732) claims that larger ranks help if updates are scaled by ``alpha / sqrt(r)``. In peft's own
    ``method_comparison`` (MetaMathQA), rsLoRA with r = 64 is the best of the LoRA runs.
    """
    return scored(task, lambda candidate: candidate.peft.r + 1e6 * candidate.peft.use_rslora)


def random_order(seed: int) -> Predictor:
    """A random order, which depends on the seed and on the names only."""

    def predictor(task: Task, folder: Path) -> Scores:
        return scored(task, lambda candidate: uniform(f"{seed} {task.name} {candidate.name}"))

    return predictor
