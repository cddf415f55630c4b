"""Token counts to pack, from seeded generators and from shards: (name, counts, L).

- ImageNet-like: drawn from the shape of ImageNet's token counts at native size and patch 16, not from ImageNet. Of
  1,000 photographs half have 768 tokens (500x375). The others are grids with an area lognormal with mean 650 and sigma
  1.15, and an aspect ratio of 1, 4/3 or 3/2, in either orientation. There are 173 distinct counts, from 20 to 15,000.
  The 1,000 are resampled, and counts above L are set to L. At this sigma, next-fit is about as full as on photographs.
  At L = 1024 more room is left for small images than on photographs, so the bound is higher.
- photographs whose sides are uniform in 64 to 384 pixels, at patch 16.
- counts uniform in 1 to L, and counts lognormal with mean 650 and sigma 1.
- shards: each image once, at its native size, shuffled.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from patchnpack import Packing
from patchnpack.loaders import scan
from patchnpack.packer.images import measure

CLOTHING = Path(__file__).resolve().parents[2] / "shared" / "data" / "clothing" / "train-{000000..000009}.tar"


def lognormal(rng: np.random.Generator, mean: float, sigma: float, count: int) -> np.ndarray:
    return rng.lognormal(np.log(mean) - sigma**2 / 2, sigma, count)


def imagenet_like(rng: np.random.Generator, images: int) -> np.ndarray:
    """Draw token counts as described in the module docstring."""
    aspects = np.array([1, 4 / 3, 3 / 4, 3 / 2, 2 / 3])
    while True:
        area, aspect = lognormal(rng, 650, 1.15, 600), rng.choice(aspects, 600)
        tokens = (np.rint(np.sqrt(area * aspect)) * np.rint(np.sqrt(area / aspect))).astype(np.int64)
        tokens = tokens[(tokens >= 20) & (tokens <= 15_000)][:500]
        photographs = np.concatenate([np.full(500, 768), tokens])
        if len(photographs) == 1000 and len(np.unique(photographs)) == 173:
            return rng.choice(photographs, images)


def drawn(images: int) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield (name, lengths, L) of the synthetic inputs."""
    native = imagenet_like(np.random.default_rng(1), images)
    for seq_len in (1024, 4096, 16384):
        yield "ImageNet-like", np.minimum(native, seq_len), seq_len
    sides = np.random.default_rng(2).integers(64, 384, (images, 2), endpoint=True)
    yield "sides U(64, 384)", np.prod(-(-sides // 16), axis=1), 1024
    yield "lengths U(1, L)", np.random.default_rng(3).integers(1, 1024, images, endpoint=True), 1024
    yield "lognormal", lognormal_counts(4, images, 4096), 4096


def lognormal_counts(seed: int, images: int, seq_len: int) -> np.ndarray:
    return lognormal(np.random.default_rng(seed), 650, 1, images).astype(np.int64).clip(1, seq_len)


def from_shards(source: str) -> Iterator[tuple[str, np.ndarray, int]]:
    """Yield (name, lengths, L) of shards, at two patch sizes and two sequence lengths."""
    index = scan(source)
    rows = index.rows(np.random.default_rng(5).permutation(np.flatnonzero(index.width > 0)))
    name = Path(source).parent.name or source
    for patch_size in (16, 32):
        for seq_len in (1024, 4096):
            images = measure(rows, Packing(seq_len=seq_len, patch_size=patch_size), seed=0, epoch=0)[0]
            yield f"{name}, patch {patch_size}", images.keep.astype(np.int64), seq_len
