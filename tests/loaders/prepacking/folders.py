"""Packings and helpers that several test files of packed folders share."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchnpack.packer import (
    BetaDrop,
    ConstantDrop,
    FitTokens,
    Packing,
    PatchSizes,
    RandomResizedCrop,
    SampleSide,
    ScheduledDrop,
    ScheduledResolution,
)

PACKING = Packing(seq_len=64, patch_size=8, max_images=7, balance=4)
CHANGING = {
    "sizes": PACKING.replace(patch_size=PatchSizes((4, 8))),
    "side": PACKING.replace(resolution=SampleSide(low=16, high=64)),
    "crop": PACKING.replace(resolution=RandomResizedCrop(max_tokens=20), token_drop=BetaDrop(0.3, 0.5)),
    "drop": PACKING.replace(token_drop=ScheduledDrop(drop=ConstantDrop(0.5), start=1, end=0, midpoint=60, tau=20)),
    "curriculum": PACKING.replace(resolution=ScheduledResolution(((0, FitTokens(9)), (60, FitTokens(30))))),
    "skip": PACKING.replace(resolution=SampleSide(low=16, high=120), seq_len=48, oversize="skip"),
}


def written(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def keys_of(batches: Any) -> list[str]:
    """Return the keys of all images, in order."""
    return [key for batch in batches for keys in batch.keys for key in keys]
