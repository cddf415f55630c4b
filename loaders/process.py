"""This process: its rank in the world, and its share of the machine's CPUs."""

from __future__ import annotations

import os

import torch


def process_rank() -> tuple[int, int]:
    """Rank and world size from `torch.distributed` if initialized, else from RANK and WORLD_SIZE, else 0 of 1.

    Raises:
        ValueError: RANK or WORLD_SIZE is not a whole number, or the rank is out of range.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    try:
        rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    except ValueError as error:
        raise ValueError(f"RANK and WORLD_SIZE in the environment must be whole numbers: {error}") from None
    return checked_rank(rank, world_size)


def checked_rank(rank: int, world_size: int) -> tuple[int, int]:
    """Return both, or raise ValueError unless the rank is from 0 to `world_size` - 1."""
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; it must be from 0 to world_size - 1 = {world_size - 1}")
    return rank, world_size


def cpu_share() -> int:
    """CPUs for this process: those that it may use, divided by the ranks on this machine; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
