"""Samples of any depth: those of fewer than 8 bits as 8-bit channels, and arrays of any type turned upright."""

from __future__ import annotations

import numpy as np


def to_8_bits(samples: np.ndarray, bits: int) -> np.ndarray:
    """Scale samples of 1 to 8 bits, uint8 of any shape, to 0 to 255.

    >>> to_8_bits(np.array([0, 7, 15], np.uint8), 4)
    array([  0, 119, 255], dtype=uint8)
    """
    if bits >= 8:
        return samples
    most = (1 << bits) - 1
    table = (np.arange(256) * 255 + most // 2) // most
    scaled: np.ndarray = table.clip(0, 255).astype(np.uint8)[samples]
    return scaled


def turned(values: np.ndarray, orientation: int) -> np.ndarray:
    """A view of values (height, width, ...) of any type, upright by an EXIF orientation, 1 to 8.

    `_turns.orient` does the same to 8-bit pixels, and copies them.

    >>> turned(np.array([[1, 2], [3, 4]]), 6).tolist()
    [[3, 1], [4, 2]]
    """
    mirror_x, mirror_y = orientation in (2, 3, 6, 7), orientation in (3, 4, 7, 8)
    if orientation >= 5:
        mirror_x, mirror_y = mirror_y, mirror_x
    flipped = values[:: -1 if mirror_y else 1, :: -1 if mirror_x else 1]
    return flipped.swapaxes(0, 1) if orientation >= 5 else flipped
