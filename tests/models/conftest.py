"""Packed batches made by hand, and a small model whose weights are all of order 1."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from patchnpack.models import NaViT, NaViTConfig
from patchnpack.packer.batch.packed_batch import PackedBatch

P, C = 4, 3


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """An image as tokens: uint8 patches (n, P*P*C), their coords (n, 2), the grid, a label."""

    patches: np.ndarray
    coords: np.ndarray
    grid: tuple[int, int]
    label: int | list[float]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def draw() -> Callable[..., Drawn]:
    """Draw an image of random pixels below `high`, of whose tokens at most `keep` are kept."""

    def drawn(
        gw: int, gh: int, label: int | list[float] = 0, seed: int = 0, keep: int | None = None, high: int = 256
    ) -> Drawn:
        rng = np.random.default_rng((seed, gw, gh))
        kept = np.sort(rng.permutation(gw * gh)[:keep])
        y, x = np.divmod(kept, gw)
        patches = rng.integers(0, high, (len(kept), P * P * C), dtype=np.uint8)
        return Drawn(patches=patches, coords=np.stack([x, y], 1).astype(np.int32), grid=(gw, gh), label=label)

    return drawn


@pytest.fixture
def pack() -> Callable[..., PackedBatch]:
    """Put drawn images, one list per pack, into a `PackedBatch` with `slots` tokens and `columns` images per pack."""

    def packed(packs: list[list[Drawn]], slots: int = 48, columns: int = 6) -> PackedBatch:
        B = len(packs)
        targets = [image.label for images in packs for image in images if isinstance(image.label, list)]
        labels = (
            torch.full((B, columns, len(targets[0])), torch.nan)
            if targets
            else torch.full((B, columns), -100, dtype=torch.int64)
        )
        batch: dict[str, Any] = {
            "patches": torch.zeros(B, slots, P * P * C, dtype=torch.uint8),
            "segment_ids": torch.zeros(B, slots, dtype=torch.int32),
            "coords": torch.zeros(B, slots, 2, dtype=torch.int32),
            "grids": torch.zeros(B, columns, 2, dtype=torch.int32),
            "image_mask": torch.zeros(B, columns, dtype=torch.bool),
            "labels": labels,
            "rows": torch.full((B, columns), -1, dtype=torch.int64),
        }
        row = 0
        for b, images in enumerate(packs):
            start = 0
            for j, image in enumerate(images):
                end = start + len(image.patches)
                batch["patches"][b, start:end] = torch.from_numpy(image.patches)
                batch["segment_ids"][b, start:end] = j + 1
                batch["coords"][b, start:end] = torch.from_numpy(image.coords)
                batch["grids"][b, j] = torch.tensor(image.grid)
                batch["image_mask"][b, j] = True
                batch["labels"][b, j] = torch.tensor(image.label)
                batch["rows"][b, j] = row
                start, row = end, row + 1
        keys = [[f"{b}/{j}" for j in range(len(images))] for b, images in enumerate(packs)]
        return PackedBatch(**batch, image_sizes=batch["grids"] * P, keys=keys, patch_size=P)

    return packed


def of_samples(batch: PackedBatch, sizes: list[list[int]], frames: list[list[int]] | None = None) -> PackedBatch:
    """The batch with samples of these numbers of images; frames count from 0 in each if they are not given."""
    samples, numbers = torch.zeros_like(batch.samples), torch.zeros_like(batch.frames)
    for b, pack in enumerate(sizes):
        counted = [i for n in pack for i in range(n)]
        samples[b, : sum(pack)] = torch.repeat_interleave(
            torch.arange(1, len(pack) + 1), torch.tensor(pack, dtype=torch.int64)
        ).int()
        numbers[b, : sum(pack)] = torch.tensor(counted if frames is None else frames[b], dtype=torch.int32)
    return dataclasses.replace(batch, samples=samples, frames=numbers)


@pytest.fixture
def config() -> NaViTConfig:
    return NaViTConfig(
        num_classes=5, width=24, depth=2, heads=3, patch_size=P, max_grid=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.3)
    )


@pytest.fixture
def build() -> Callable[..., NaViT]:
    """A model in evaluation mode with random weights that keep every activation, and the logits, of order 1."""

    def built(config: NaViTConfig, dtype: torch.dtype = torch.float32) -> NaViT:
        generator = torch.Generator().manual_seed(7)
        model = NaViT(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                if "norm" in name:
                    parameter.copy_(1 + 0.2 * noise)
                elif parameter.ndim == 2 and not name.startswith(("pos_embed", "pool.query")):
                    parameter.copy_(noise * parameter.shape[1] ** -0.5)
                else:
                    parameter.copy_(noise)
        return model.to(dtype)

    return built
