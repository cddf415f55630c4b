"""Compiled kernels that turn pixels upright and mirror them."""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer._memory import call_memcpy


@njit(nogil=True, cache=True)
def orient(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """`pixels` (H, W, C) turned upright by its EXIF orientation (1 to 8)."""
    height, width, channels = pixels.shape
    swap = orientation >= 5
    out = np.empty((width, height, channels) if swap else (height, width, channels), np.uint8)
    # Maps (y, x) of the upright image to the stored one: EXIF 2.32, tag 0x0112.
    flip_y = orientation in (3, 4, 7, 8)
    flip_x = orientation in (2, 3, 6, 7)
    for y in range(out.shape[0]):
        for x in range(out.shape[1]):
            v, u = (x, y) if swap else (y, x)
            if swap:
                v = height - 1 - v if flip_x else v
                u = width - 1 - u if flip_y else u
            else:
                v = height - 1 - v if flip_y else v
                u = width - 1 - u if flip_x else u
            for c in range(channels):
                out[y, x, c] = pixels[v, u, c]
    return out


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
