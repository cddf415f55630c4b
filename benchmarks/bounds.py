"""Lower bounds on the number of packs: no packing algorithm can need fewer.

All three bounds ignore the limit on images per pack, which can only make them lower. The third bound solves the linear
programme of Gilmore and Gomory (1961). It is tight: the optimal packing rarely needs more than one pack above it. Of
more than 512 distinct lengths, some are rounded down first, so that the bound stays a bound; on real size tables this
costs at most 0.02 % of it.
"""

from __future__ import annotations

import numpy as np

from patchnpack.packer.binpacking.pricing._cutting_stock import most_valuable
from patchnpack.packer.binpacking.pricing.cutting_stock import group_lengths, solve_cutting_stock

# n items of m distinct lengths, `counts` of each; L capacity

_ONE = 1 << 40  # duals are integers in this unit, which makes the bound exact
_GROUPS = 512


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


def column_generation_bound(
    lengths: np.ndarray, capacity: int, *, groups: int = _GROUPS, rounds: int = 300, steps: int = 50_000
) -> int:
    """The linear programme over all patterns (Gilmore and Gomory 1961), rounded up; valid even if stopped early.

    `solve_cutting_stock` finds the duals with floats. Here they are rounded to integers and divided by the worth of the
    best pattern, which makes them feasible: Farley's bound (1990), exact.

    Args:
        lengths: int (n,), each from 1 to `capacity`.
        capacity: L.
        groups: distinct lengths at most; beyond them, some are rounded down.
        rounds, steps: limits of the solver.

    >>> column_generation_bound(np.array([4, 4, 4, 4, 3, 3]), 10)  # 22 tokens; two packs would hold two 4s and no 3
    3
    """
    sizes, counts = group_lengths(lengths, capacity, groups)
    solved = solve_cutting_stock(sizes, counts, capacity, tolerance=1e-6, rounds=rounds, pivots=steps)
    values = (solved.prices * _ONE).astype(np.int64)
    best, choice = np.empty(capacity + 1, np.int64), np.empty(capacity + 1, np.int64)
    most_valuable(sizes, values, best, choice)
    proven = sum(int(c) * int(v) for c, v in zip(counts, values, strict=True))
    return max(volume_bound(lengths, capacity), -(-proven // int(best[capacity])))


def lower_bound(lengths: np.ndarray, capacity: int) -> tuple[int, str]:
    """Return the best bound and its name; ties go to the first.

    >>> lower_bound(np.array([6, 6, 6]), 10)
    (3, 'Martello-Toth')
    """
    bounds = {
        "volume": volume_bound(lengths, capacity),
        "Martello-Toth": martello_toth_bound(lengths, capacity),
        "column generation": column_generation_bound(lengths, capacity),
    }
    name = max(bounds, key=lambda name: bounds[name])
    return bounds[name], name
