"""Which process this is: its rank among all, and its share of the machine's CPUs."""

from __future__ import annotations

import os

import torch


def process_rank() -> tuple[int, int]:
    """Rank and world size: of `torch.distributed` where it runs, else of the environment, else 0 of 1.

    Raises:
        ValueError: the environment's are no whole numbers, or the rank is outside the world.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE in the environment must be whole numbers: {error}") from None
    return checked_rank(rank, world_size)


def checked_rank(rank: int, world_size: int) -> tuple[int, int]:
    """Both, if the rank is from 0 to `world_size` - 1; ValueError otherwise."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; it must be from 0 to world_size - 1 = {world_size - 1}")
    return rank, world_size


def cpu_share() -> int:
    """CPUs of this process, shared among the ranks of this machine; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
