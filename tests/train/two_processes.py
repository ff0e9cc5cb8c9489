"""A few proximal steps on a joint batch, by one process, or by several under ``torchrun`` that share the batch."""

import sys

import torch
from accelerate import Accelerator
from torch import Tensor, nn

import foretune as ft


def start(seed: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    return model, ft.ProximalAdamW(model.parameters(), lr=0.05, strength=2.0, rule="selective", scope="tensor")


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, rank: int, world: int) -> None:
    generator = torch.Generator().manual_seed(7)
    x, y = (torch.randn(8, width, generator=generator, dtype=torch.float64)[rank::world] for width in (3, 2))
    for _ in range(6):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), y).backward()
        optimizer.step()


def outcome(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Parameters and anchors."""
    anchors = [state["proximal_anchor"] for state in optimizer.state.values()]
    return [parameter.detach() for parameter in model.parameters()] + anchors


def share(accelerator: Accelerator, folder: str) -> None:
    rank, world = accelerator.process_index, accelerator.num_processes
    assert world > 1
    model, optimizer = accelerator.prepare(*start(rank))  # here the other processes get the parameters of process 0
    steps(model, optimizer, rank, world)
    torch.save(outcome(model, optimizer), f"{folder}/{rank}.pt")


if __name__ == "__main__":
    accelerator = Accelerator(cpu=True)
    share(accelerator, sys.argv[1])
    accelerator.free_memory()  # the wrapped model has gloo's threads, which may abort the process at its end
    accelerator.end_training()
