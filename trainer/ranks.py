"""The ranks that train together: who they are, and sums over them."""

from __future__ import annotations

import os

import torch
import torch.distributed as dist


def together() -> bool:
    """Whether a process group of several ranks has been started."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def rank_and_size() -> tuple[int, int]:
    """This process's rank, and how many there are.

    Raises:
        ValueError: torchrun has started several processes, and none of them a process group. Loaders would share out
            the images, and nobody the gradients.
    """
    if together():
        return dist.get_rank(), dist.get_world_size()
    if (size := int(os.environ.get("WORLD_SIZE", "1"))) > 1:
        raise ValueError(
            f"WORLD_SIZE is {size}, and there is no process group: each rank would train a model of its own. "
            "Call torch.distributed.init_process_group() first, as `patchnpack train` does"
        )
    return 0, 1


def over_ranks(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """The sum of every rank's tensor, on `device`; NCCL needs that to be a GPU. Every rank calls it."""
    values = values.detach().to(device, copy=True)
    if together():
        dist.all_reduce(values)
    return values
