"""Lower bounds on the number of packs: no packing algorithm can need fewer.

All three bounds ignore the limit on images per pack, which can only make them lower. The third bound solves the linear
programme of Gilmore and Gomory (1961) by column generation, so it needs few distinct lengths. It is tight: the optimal
packing rarely needs more than one pack above it.
"""

from __future__ import annotations

import time

import numpy as np
from numba import njit
from scipy.optimize import linprog
from scipy.sparse import csc_array

# n items of m distinct lengths, `counts` of each; L capacity

_ONE = 1 << 40  # duals are integers in this unit, which makes the bound exact
_DISTINCT = 400  # with more distinct lengths, the linear programme is slow


def volume_bound(lengths: np.ndarray, capacity: int) -> int:
    """Packs needed if items could be cut: ceil(sum / L).

    >>> volume_bound(np.array([6, 6, 6]), 10)
    2
    """
    return -(-int(lengths.sum()) // capacity)


def martello_toth_bound(lengths: np.ndarray, capacity: int) -> int:
    """The bound L2 of Martello and Toth (1990), in O(n + L).

    For a threshold t up to L / 2, each item above L - t needs a pack without other counted items, and each item above
    L / 2 needs its own pack. Other items of at least t fit only next to the latter or in further packs.

    >>> martello_toth_bound(np.array([6, 6, 6]), 10)
    3
    """
    counts = np.bincount(lengths, minlength=capacity + 1)
    above = counts[::-1].cumsum()[::-1]  # items of at least this length
    tokens = (counts * np.arange(capacity + 1))[::-1].cumsum()[::-1]
    half = capacity // 2
    if not half:
        return len(lengths)
    t = np.arange(1, half + 1)
    alone = above[capacity - t + 1]
    large = above[half + 1] - alone
    room = large * capacity - (tokens[half + 1] - tokens[capacity - t + 1])
    small = tokens[t] - tokens[half + 1]
    return int((alone + large + np.maximum(0, -((room - small) // capacity))).max(initial=0))


@njit
def _price(sizes, values, capacity, best, choice):  # type: ignore[no-untyped-def]
    """Solve the unbounded knapsack: the best value per room, `best` (L + 1,), and the last length chosen."""
    best[0], choice[0] = 0, -1
    for room in range(1, capacity + 1):
        best[room], choice[room] = best[room - 1], -1
        for i in range(len(sizes)):
            if sizes[i] > room:
                break  # lengths ascend
            value = best[room - sizes[i]] + values[i]
            if value > best[room]:
                best[room], choice[room] = value, i


@njit
def _pattern(sizes, best, choice, room, pattern):  # type: ignore[no-untyped-def]
    """Add the items that `_price` chose for `room` to `pattern` (m,)."""
    while room > 0:
        i = choice[room]
        if i < 0:
            room -= 1
        else:
            pattern[i] += 1
            room -= sizes[i]


def _decreasing_patterns(sizes: np.ndarray, counts: np.ndarray, capacity: int) -> np.ndarray:
    """Patterns of a packing that fills each pack with the largest items that fit, int64 (patterns, m)."""
    left, patterns = counts.copy(), []
    while left.any():
        room, pattern = capacity, np.zeros(len(sizes), np.int64)
        for i in np.flatnonzero(left)[::-1]:
            pattern[i] = min(left[i], room // sizes[i])
            room -= pattern[i] * sizes[i]
        patterns.append(pattern)
        left -= pattern * (left // np.maximum(pattern, 1))[pattern > 0].min()
    return np.array(patterns)


def column_generation_bound(lengths: np.ndarray, capacity: int, *, seconds: float = 15, rounds: int = 400) -> int:
    """The linear programme over all patterns (Gilmore and Gomory 1961), rounded up; valid even if stopped early.

    Each round solves the programme over the patterns found so far. Its duals price new patterns: the best pattern that
    holds each length. Duals divided by the value of the best pattern are feasible, which gives Farley's bound (1990).
    Duals are rounded to integers first, so that the bound is exact although the solver uses floats.

    Args:
        lengths: int (n,), each from 1 to `capacity`.
        capacity: L.
        seconds, rounds: limits, after which the best bound so far is returned.

    >>> column_generation_bound(np.array([4, 4, 4, 4, 3, 3]), 10)  # 22 tokens; two packs would hold two 4s and no 3
    3
    """
    sizes, counts = np.unique(lengths, return_counts=True)
    m, lower = len(sizes), volume_bound(lengths, capacity)
    columns = _decreasing_patterns(sizes, counts, capacity)
    columns = np.unique(np.concatenate([columns, np.diag(capacity // sizes)]), axis=0)
    best, choice = np.empty(capacity + 1, np.int64), np.empty(capacity + 1, np.int64)
    began = time.perf_counter()
    for _ in range(rounds):
        solved = linprog(
            np.ones(len(columns)), A_ub=csc_array(-columns.T.astype(np.float64)), b_ub=-counts, method="highs"
        )
        if solved.status != 0:
            break
        values = np.maximum(0, -solved.ineqlin.marginals * _ONE).astype(np.int64)
        _price(sizes, values, capacity, best, choice)
        proven = sum(int(c) * int(v) for c, v in zip(counts, values, strict=True))
        lower = max(lower, -(-proven // int(best[capacity])))
        # Further rounds could lower the value only to a number that rounds up to the same bound.
        if lower >= solved.fun - 1e-6 or time.perf_counter() - began > seconds:
            break
        worth = values + best[capacity - sizes]  # value of the best pattern that holds each length
        found = []
        for i in np.argsort(-worth, kind="stable"):
            if worth[i] <= _ONE + (_ONE >> 30):
                break
            pattern = np.zeros(m, np.int64)
            pattern[i] = 1
            _pattern(sizes, best, choice, capacity - sizes[i], pattern)
            found.append(pattern)
        if not found:
            break
        columns = np.unique(np.concatenate([columns, found]), axis=0)
    return lower


def lower_bound(lengths: np.ndarray, capacity: int, *, seconds: float = 15) -> tuple[int, str]:
    """Return the best bound and its name; ties go to the first.

    >>> lower_bound(np.array([6, 6, 6]), 10)
    (3, 'Martello-Toth')
    """
    bounds = {"volume": volume_bound(lengths, capacity), "Martello-Toth": martello_toth_bound(lengths, capacity)}
    if len(np.unique(lengths)) <= _DISTINCT:
        bounds["column generation"] = column_generation_bound(lengths, capacity, seconds=seconds)
    name = max(bounds, key=lambda name: bounds[name])
    return bounds[name], name
