"""Samples of fewer than 8 bits, which decoders return as they are stored, as 8-bit channels."""

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
