"""Kernels at initialisation: the NTK, and what the paper's published script computes instead."""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from foretune.kernel import Spectrum
from foretune.linear import Linearised, linearise
from foretune.tangents import centring
from foretune.task import Candidate, Task
from foretune.testing import ntk
from foretune.train import build_peft_model

SCRIPT_SAMPLE = 32  # the first rows of the training data


def published_kernel(jacobian: Float[Tensor, "n c p"], epsilon: float = 1e-8) -> Float[Tensor, "N N"]:
    """The published script's kernel: ``J1 · (J2/(|J2| + ε))ᵀ``, entry by entry, with J1 = J2 on the same examples.

    The second factor is the sign of the Jacobian, up to ε. So the product is neither symmetric nor positive
    semi-definite, and its condition number is not that of the NTK ``J Jᵀ``, which the paper's theory is about.

    Args:
        jacobian: The Jacobian of the logits in the LoRA parameters.
        epsilon: ε, as in the script.
    """
    rows = jacobian.flatten(0, 1).double()
    return rows @ (rows / (rows.abs() + epsilon)).T


def condition_number(matrix: Float[Tensor, "N N"]) -> float:
    """Largest over smallest singular value, for a matrix that need not be symmetric."""
    values = torch.linalg.svdvals(matrix)
    smallest = float(values[-1])
    return float(values[0]) / smallest if smallest > len(values) * 1e-12 * float(values[0]) else math.inf


def lora_jacobian(linear: Linearised, batch: dict[str, Tensor]) -> Float[Tensor, "n c l"]:
    """The columns of J0 that belong to LoRA parameters, without the head."""
    kept = torch.cat([torch.full((x.numel(),), "lora_" in name) for name, x in linear.theta().items()])
    return linear.jacobian(batch)[1][..., kept]


def figures(task: Task, candidate: Candidate, seed: int) -> dict[str, Any]:
    """Figures of the kernels of a placement before training."""
    model = build_peft_model(task, candidate, seed)
    linear = linearise(model)
    rows = [task.train[i] for i in range(len(task.train))]
    sample, whole = task.collator(rows[:SCRIPT_SAMPLE]), task.collator(rows)
    jacobian = lora_jacobian(linear, sample)
    centre = torch.kron(torch.eye(len(rows)), centring(task.num_outputs).float().contiguous())
    spectrum = Spectrum.of(centre @ ntk(model, whole) @ centre.T, precision=torch.float32)
    few = centring(task.num_outputs).float() @ jacobian
    few = few.flatten(0, 1).double()
    matrix = published_kernel(jacobian)
    return {
        "condition_number": spectrum.condition_number,
        "condition_number_script_sample": Spectrum.of(few @ few.T, precision=torch.float32).condition_number,
        "condition_number_published": condition_number(matrix),
        "asymmetry_published": float((matrix - matrix.T).norm() / matrix.norm()),
        "negative_eigenvalues_published": int((torch.linalg.eigvals(matrix).real < 0).sum()),
        "size_published": len(matrix),
        "largest": float(spectrum.eigenvalues[0]),
        "smallest": float(spectrum.eigenvalues[-1]),
        "trace": spectrum.trace,
        "parameters": sum(x.numel() for name, x in linear.theta().items() if "lora_" in name),
    }
