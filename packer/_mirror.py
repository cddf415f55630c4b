"""`mirror`: the compiled kernel that mirrors pixels."""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer._memory import call_memcpy


@njit(nogil=True, cache=True)
def mirror(pixels: np.ndarray, left_right: bool, top_bottom: bool, out: np.ndarray) -> None:
    """Write `pixels` (H, W, C), mirrored, to `out`; both are uint8, contiguous, and apart."""
    height, width, channels = pixels.shape
    source, target = pixels.reshape(-1), out.reshape(-1)
    stride = width * channels
    for row in range(height):
        start, to = (height - 1 - row if top_bottom else row) * stride, row * stride
        if not left_right:
            call_memcpy(target, to, source, start, stride)
            continue
        start += stride - channels
        if channels == 3:  # a third of the time that the loop over any number takes
            for _ in range(width):
                target[to], target[to + 1], target[to + 2] = source[start], source[start + 1], source[start + 2]
                to, start = to + 3, start - 3
            continue
        for _ in range(width):
            for channel in range(channels):
                target[to + channel] = source[start + channel]
            to, start = to + channels, start - channels
