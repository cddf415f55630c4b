"""The compiled choice of images; `reference_draws.chosen_frames` defines it in plain Python."""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer._kernels import mix

# n samples with images[i] each, C images chosen

UNIFORM, RANDOM, STRIDE = 0, 1, 2


@njit(nogil=True, cache=True)
def _draw(key, images, count, out):  # type: ignore[no-untyped-def]
    """Draw `count` of `images` numbers in ascending order to `out` (count,): Floyd's algorithm (Bentley 1987)."""
    state = key
    for j in range(count):
        last = images - count + j
        state += np.uint64(0x9E3779B97F4A7C15)
        drawn = np.int64(mix(state) % np.uint64(last + 1))
        at = np.int64(np.searchsorted(out[:j], drawn))
        if at < j and out[at] == drawn:  # taken: the last number cannot be
            drawn, at = np.int64(last), np.int64(j)
        for i in range(j, at, -1):
            out[i] = out[i - 1]
        out[at] = drawn


@njit(nogil=True, cache=True)
def choose(images, offsets, kind, count, stride, keys, out):  # type: ignore[no-untyped-def]
    """Write the numbers of each sample's chosen images to `out` (C,); `offsets` (n + 1,) says how many they are.

    The last one is repeated where a sample offers fewer.
    """
    for i in range(len(images)):
        start, end = offsets[i], offsets[i + 1]
        offered = min(count, -(-images[i] // stride))
        own = min(end - start, offered)
        if kind == RANDOM and images[i] > own:
            _draw(keys[i], images[i], own, out[start : start + own])
        elif kind == UNIFORM and images[i] > own:
            for j in range(own):
                out[start + j] = (2 * j + 1) * images[i] // (2 * own)
        else:
            for j in range(own):
                out[start + j] = j * stride
        for j in range(start + own, end):
            out[j] = out[start + own - 1]
