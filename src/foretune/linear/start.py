"""Saves and loads θ0, the trained parameters as they were before training."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foretune.errors import InputError

START_FILE = "start.safetensors"
SAMPLE = 64  # about this many values of every frozen weight go into the fingerprint


def save_start(model: nn.Module, start: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write θ0 to ``start.safetensors`` in a folder, with the fingerprint of the frozen weights.

    Args:
        model: The model that trains.
        start: θ0, by parameter name.
        folder: The folder.
    """
    tensors = {name: value.detach().contiguous() for name, value in start.items()}
    save_file(tensors, Path(folder) / START_FILE, {"frozen": fingerprint(model, tensors)})


def load_start(model: nn.Module, folder: str | Path) -> dict[str, Tensor]:
    """Read θ0 from ``start.safetensors`` in a folder.

    Args:
        model: The model with which θ0 was saved.
        folder: The folder.

    Returns:
        θ0, by parameter name.

    Raises:
        InputError: The file cannot be read, or was saved with other frozen weights.
    """
    path = Path(folder) / START_FILE
    try:
        with safe_open(path, framework="pt") as file:
            start = {name: file.get_tensor(name) for name in file.keys()}
            frozen = (file.metadata() or {}).get("frozen")
    except (OSError, SafetensorError) as error:
        raise InputError(str(path), f"cannot be read ({error})", "train the adapter again") from error
    if frozen != fingerprint(model, start):
        raise InputError(
            str(path),
            "it was saved with a model whose frozen weights differ from this model's",
            "name the model that was trained then",
        )
    return start


def fingerprint(model: nn.Module, trained: Collection[str]) -> str:
    """A hash of the names, the shapes and some values of the frozen weights. Equal models have equal hashes.

    Values are rounded to bfloat16 first. peft keeps an untrained copy of a head beside the trained one; it is left out,
    because it is random and differs from seed to seed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if name not in trained and ".original_module." not in name:
            values = parameter.detach().flatten()[:: max(1, parameter.numel() // SAMPLE)]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(values.to("cpu", torch.float32).bfloat16().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
