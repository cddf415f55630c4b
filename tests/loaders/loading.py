"""What several test files of the loader share: a packing, a transform, and looks at batches and threads."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from patchnpack.packer import PackedBatch, Packing

PACKING = Packing(seq_len=64, patch_size=8, max_images=7)


def decoding_threads() -> list[str]:
    """Return the names of the decoding threads that run."""
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("patchnpack-decode")]


def keys_of(batches: Sequence[PackedBatch]) -> list[str]:
    """Return the keys of all images, in order."""
    return [key for batch in batches for keys in batch.keys for key in keys]


def noisy(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Transform that changes every pixel at random."""
    out: np.ndarray = image ^ rng.integers(0, 256, image.shape, np.uint8)
    return out
