"""The compiled draws from distributions: each value from its own key, so it depends on nothing else.

A key's stream is splitmix64's: the state grows by a constant, and `mix` of it is the draw.
"""

from __future__ import annotations

import math

import numpy as np
from numba import njit

from patchnpack.packer._kernels import mix

# n values, each drawn from its own uint64 key


@njit(nogil=True, cache=True)
def _uniform(state):  # type: ignore[no-untyped-def]
    """The next state, and a value in (0, 1): 53 bits and a half, so never 0 or 1."""
    state += np.uint64(0x9E3779B97F4A7C15)
    return state, (np.float64(mix(state) >> np.uint64(11)) + 0.5) / 9007199254740992.0


@njit(nogil=True, cache=True)
def _normal(state):  # type: ignore[no-untyped-def]
    """The next state, and a standard normal value (Box and Muller 1958)."""
    state, u = _uniform(state)
    state, v = _uniform(state)
    return state, math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)


@njit(nogil=True, cache=True)
def _log_gamma_value(state, shape):  # type: ignore[no-untyped-def]
    """The next state, and the logarithm of a gamma value (Marsaglia and Tsang 2000); small shapes would underflow."""
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
    """Normal values of `mean` (n,) and `std` within [low, high), float64 (n,). The means must lie within, too.

    Values outside are drawn again; inside is at least the lesser of a third and (high - low) / (4 std) of them.
    """
    for i in range(len(keys)):
        state, z = _normal(keys[i])
        while not low <= mean[i] + std * z < high:
            state, z = _normal(state)
        out[i] = mean[i] + std * z
