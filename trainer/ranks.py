"""Ranks of distributed training, and sums over them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether a process group of several ranks has been initialised."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_and_size() -> tuple[int, int]:
    """The rank of this process, and the number of ranks.

    Raises:
        ValueError: torchrun has started several processes, but no process group is initialised. Loaders would share out
            the images, but gradients would not be shared.
    """
    if is_distributed():
        return dist.get_rank(), dist.get_world_size()
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"WORLD_SIZE is {size}, but there is no process group: each rank would train its own model. "
            "Call torch.distributed.init_process_group() first, as `patchnpack train` does"
        )
    return 0, 1


def over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Sum a tensor over all ranks, on `device` (a GPU with NCCL). Every rank must call it."""
    values = values.detach().to(device, non_blocking=True, copy=True)  # waiting would drain the device's queue
    if is_distributed():
        dist.all_reduce(values)
    return values
