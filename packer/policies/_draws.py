"""The compiled draws from distributions: each value depends only on its own key.

A key's stream is that of splitmix64: the state grows by a constant, and `mix` of the state is the draw.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from patchnpack.packer._kernels import mix

# n values, each drawn from its own uint64 key


@njit(nogil=True, cache=True)
def _uniform(state):  # type: ignore[no-untyped-def]
    """The next state, and a value in (0, 1): a 52-bit integer plus one half, so never 0 or 1."""
    state += np.uint64(0x9E3779B97F4A7C15)
    return state, (np.float64(mix(state) >> np.uint64(12)) + 0.5) / 4503599627370496.0


@njit(nogil=True, cache=True)
def _normal(state):  # type: ignore[no-untyped-def]
    """The next state, and a standard normal value (Box and Muller 1958)."""
    state, u = _uniform(state)
    state, v = _uniform(state)
    return state, math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)


@njit(nogil=True, cache=True)
def _log_gamma_value(state, shape):  # type: ignore[no-untyped-def]
    """The next state, and the log of a gamma value (Marsaglia and Tsang 2000).

    At small shapes the value itself underflows.
    """
    boost = 0.0
    if shape < 1:
        state, u = _uniform(state)
        boost = math.log(u) / shape
        shape += 1.0
    d = shape - 1 / 3
    c = 1 / math.sqrt(9 * d)
    while True:
        state, x = _normal(state)
        state, u = _uniform(state)
        if c * x <= -1:
            continue
        v = (1 + c * x) ** 3
        if math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
            return state, math.log(d * v) + boost


@njit(nogil=True, cache=True)
def beta(keys: np.ndarray, a: float, b: float, out: np.ndarray) -> None:
    """Beta(a, b) values in [0, 1], float64 (n,): x / (x + y) of two gamma values."""
    for i in range(len(keys)):
        state, x = _log_gamma_value(keys[i], a)
        state, y = _log_gamma_value(state, b)
        out[i] = 1 / (1 + math.exp(min(700.0, y - x)))


@njit(nogil=True, cache=True)
def truncated_normal(keys: np.ndarray, mean: np.ndarray, std: float, low: float, high: float, out: np.ndarray) -> None:
    """Normal values of `mean` (n,) and `std` within [low, high), float64 (n,).

    The means must also lie within.

    Values outside are drawn again. The share inside is at least the lesser of 1/3 and (high - low) / (4 std).
    """
    for i in range(len(keys)):
        state, z = _normal(keys[i])
        while not low <= mean[i] + std * z < high:
            state, z = _normal(state)
        out[i] = mean[i] + std * z


@njit(nogil=True, cache=True)
def uniform(keys: np.ndarray, out: np.ndarray) -> None:
    """Values in (0, 1), float64 (n,)."""
    for i in range(len(keys)):
        out[i] = _uniform(keys[i])[1]


@njit(nogil=True, cache=True)
def crops(
    keys: np.ndarray, width: np.ndarray, height: np.ndarray, scale: np.ndarray, ratio: np.ndarray, out: np.ndarray
) -> None:
    """See `reference_draws.random_crop`.

    `scale` and `ratio` are (2,); writes (left, top, width, height), int32 (n, 4).
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for i in range(len(keys)):
        state, w, h = keys[i], np.int64(width[i]), np.int64(height[i])
        found = False
        for _ in range(10):
            state, u = _uniform(state)
            state, v = _uniform(state)
            area = (scale[0] + (scale[1] - scale[0]) * u) * (w * h)
            aspect = math.exp(low + (high - low) * v)
            crop_w = np.int64(math.floor(math.sqrt(area * aspect) + 0.5))
            crop_h = np.int64(math.floor(math.sqrt(area / aspect) + 0.5))
            if 1 <= crop_w <= w and 1 <= crop_h <= h:
                found = True
                break
        if found:
            state, u = _uniform(state)
            state, v = _uniform(state)
            out[i, 0] = np.int64(u * (w - crop_w + 1))
            out[i, 1] = np.int64(v * (h - crop_h + 1))
        else:
            crop_w = max(np.int64(1), min(w, np.int64(math.floor(h * ratio[1] + 0.5))))
            crop_h = max(np.int64(1), min(h, np.int64(math.floor(w / ratio[0] + 0.5))))
            out[i, 0] = (w - crop_w) // 2
            out[i, 1] = (h - crop_h) // 2
        out[i, 2], out[i, 3] = crop_w, crop_h
