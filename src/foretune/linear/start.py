"""θ0 on disk: the parameters before training, beside those that training made of them."""

import hashlib
from collections.abc import Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from foretune.errors import InputError

START_FILE = "start.safetensors"
SAMPLE = 64  # values of each frozen weight that tell one model from another


def save_start(model: nn.Module, start: Mapping[str, Tensor], folder: str | Path) -> None:
    """Write θ0, by parameter name, to ``start.safetensors`` in a folder, with the fingerprint of the frozen weights."""
    tensors = {name: value.detach().contiguous() for name, value in start.items()}
    save_file(tensors, Path(folder) / START_FILE, {"frozen": fingerprint(model, tensors)})


def load_start(model: nn.Module, folder: str | Path) -> dict[str, Tensor]:
    """Read it for the same model.

    Raises:
        InputError: It cannot be read, or was saved with other frozen weights.
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
            str(path), "it was saved with other frozen weights than this model's", "name the model of that training"
        )
    return start


def fingerprint(model: nn.Module, trained: Collection[str]) -> str:
    """A hash of names, shapes and some values of the weights that do not train: equal for equal models.

    Values are compared in bfloat16. The untrained heads that peft keeps beside trained ones are left out: they are
    another draw for every seed.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, parameter in model.named_parameters():
        if name not in trained and ".original_module." not in name:
            values = parameter.detach().flatten()[:: max(1, parameter.numel() // SAMPLE)]
            digest.update(f"{name} {tuple(parameter.shape)}".encode())
            digest.update(values.to("cpu", torch.float32).bfloat16().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()
