"""Flips: which images are mirrored, left-right and top-bottom."""

from __future__ import annotations

import numpy as np

from patchnpack.packer.policies.random import Purpose, counter_hash

# M images

_HALF = np.float64(2**-32)


def draw_flips(ids: np.ndarray, flip: float, vflip: float, *, seed: int, epoch: int) -> np.ndarray:
    """Draw whether each image is mirrored, uint8 (M,): bit 0 is left-right, bit 1 top-bottom.

    Images of equal ids are mirrored alike. Each direction has its own draw.

    Args:
        ids: uint64 (M,), what identifies the draw of each image.
        flip: probability of left-right.
        vflip: probability of top-bottom.
        seed, epoch: keys of the draws, together with `ids`.

    >>> draw_flips(np.arange(4, dtype=np.uint64), 1.0, 0.0, seed=0, epoch=0).tolist()
    [1, 1, 1, 1]
    """
    drawn = counter_hash(Purpose.FLIP, seed, epoch, ids)
    left_right = (drawn & np.uint64(0xFFFFFFFF)) * _HALF < flip
    top_bottom = (drawn >> np.uint64(32)) * _HALF < vflip
    flips: np.ndarray = left_right.astype(np.uint8) | top_bottom.astype(np.uint8) << 1
    return flips


def flipped_axes(flip: np.ndarray) -> np.ndarray:
    """Return the flips of images (M,) as bool (M, 2): left-right, top-bottom.

    >>> flipped_axes(np.array([0, 1, 3], np.uint8)).tolist()
    [[False, False], [True, False], [True, True]]
    """
    axes: np.ndarray = (flip[:, None] >> np.arange(2, dtype=np.uint8) & 1).astype(np.bool_)
    return axes
