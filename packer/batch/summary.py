"""What `repr` shows of a batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from patchnpack.packer.batch.objects import PackedObjects
from patchnpack.packer.text import counted, floor_percent

# B packs in the batch, L token slots per pack


class Summarized(Protocol):
    """What this module needs of a `PackedBatch`."""

    patches: torch.Tensor
    segment_ids: torch.Tensor
    labels: torch.Tensor
    extras: dict[str, list[list[Any]]]
    targets: dict[str, torch.Tensor | PackedObjects]
    lengths: list[int]
    sample_sizes: list[list[int]] | None
    patch_size: int
    epoch: int
    step: int
    position: int

    @property
    def num_images(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...


def summary_of(batch: Summarized) -> str:
    """A few lines: shapes, fill, images and position, without waiting for a device."""
    (B, L), device = batch.segment_ids.shape, batch.patches.device
    ends = sorted({min(batch.lengths), max(batch.lengths)}) if batch.lengths else []
    lengths = f", {' to '.join(map(str, ends))} tokens each" if ends else ""
    sizes = [size for pack in batch.sample_sizes or [] for size in pack]
    ends = sorted({min(sizes), max(sizes)}) if sizes else []
    samples = f"  samples: {len(sizes):,}, {' to '.join(map(str, ends))} images each\n" if sizes else ""
    targets = f"  targets: {_targets(batch.targets)}\n" if batch.targets else ""
    return (
        f"PackedBatch of {counted(B, 'pack')} with {L} token slots, {floor_percent(batch.num_tokens, B * L)} full\n"
        f"  images: {batch.num_images:,}{lengths}\n{samples}"
        f"  patches: {_tensor(batch.patches)} on {device}, patch size {batch.patch_size}\n"
        f"  labels: {_tensor(batch.labels)}; extras: {', '.join(batch.extras) or 'none'}\n{targets}"
        f"  epoch {batch.epoch}, step {batch.step}, position {batch.position}"
    )


def _targets(targets: Mapping[str, torch.Tensor | PackedObjects]) -> str:
    return ", ".join(
        f"{name} {counted(len(target), 'object') if isinstance(target, PackedObjects) else _tensor(target)}"
        for name, target in targets.items()
    )


def _tensor(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
