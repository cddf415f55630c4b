"""What each length is worth: the linear programme of cutting stock, over distinct lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from patchnpack.packer.binpacking.pricing import _cutting_stock

# m distinct lengths, ascending, `counts` of each; L capacity

GROUPS = 256  # distinct lengths at most, where not all are needed
_SMOOTHING = 0.5
_TOLERANCE = 1e-4
_STEPS = 2_500_000_000  # entries of the inverse that the simplex may change, and of the knapsack: about a second each
_MARGIN = 1e-10  # more than the rounding error of any pattern's worth


@dataclass(frozen=True, slots=True)
class CuttingStock:
    """Prices of lengths, and how a best fractional packing of them looks.

    Attributes:
        lengths: int64 (m,), distinct, ascending.
        counts: int64 (m,), items of each length.
        prices: float64 (m,), in packs: no pattern is worth more than 1.
        bound: sum of `counts * prices`: no packing needs fewer packs.
        starts: int64 (patterns + 1,): pattern p holds the entries `starts[p]` to `starts[p + 1]` of the next two.
        indices: int64, which of `lengths`.
        copies: int64, items of that length per pack.
        packs: float64 (patterns,), how often the fractional packing uses each pattern.
        rounds, pivots: rounds of column generation and steps of the simplex that were taken.
    """

    lengths: np.ndarray
    counts: np.ndarray
    prices: np.ndarray
    bound: float
    starts: np.ndarray
    indices: np.ndarray
    copies: np.ndarray
    packs: np.ndarray
    rounds: int
    pivots: int


def solve_cutting_stock(
    lengths: np.ndarray,
    counts: np.ndarray,
    capacity: int,
    *,
    tolerance: float = _TOLERANCE,
    rounds: int | None = None,
    pivots: int | None = None,
) -> CuttingStock:
    """Solve the linear programme of Gilmore and Gomory (1961) over all patterns, sets of items that fit in a pack.

    The programme uses patterns fractionally, as few as hold every item. Its duals price the lengths. Column generation
    starts with one pattern per length and adds, in each round, the pattern worth most under the duals that holds each
    length: an unbounded knapsack. The knapsack sees duals smoothed towards the best ones so far (Wentges 1997), which
    takes far fewer rounds. Any values divided by the worth of the best pattern are feasible duals and give a lower
    bound (Farley 1990): prices and bound are valid even where a limit stops the rounds early. There are limits on
    rounds and steps and none on time, so the result depends on the arguments alone.

    Args:
        lengths: int64 (m,), distinct, ascending, each from 1 to `capacity`. Time grows with m * m: see `group_lengths`.
        counts: int64 (m,), items of each length, at least 1.
        capacity: L.
        tolerance: how far the bound may stay below the programme's value, as a share of it.
        rounds, pivots: limits; by default, work of about a second each.

    >>> solved = solve_cutting_stock(np.array([3, 4]), np.array([2, 4]), 10)
    >>> round(solved.bound, 6)  # two patterns: two 4s, or one 4 and two 3s
    2.5
    """
    lengths, counts = np.ascontiguousarray(lengths, np.int64), np.ascontiguousarray(counts, np.int64)
    m, prices = len(lengths), np.empty(len(lengths))
    if not m:
        none = np.empty(0, np.int64)
        return CuttingStock(lengths, counts, prices, 0.0, np.zeros(1, np.int64), none, none, np.empty(0), 0, 0)
    if rounds is None:
        rounds = min(max(20, _STEPS // (m * capacity)), 1000)
    if pivots is None:
        pivots = max(200, _STEPS // (m * m))
    patterns, basis, packs, taken, steps = _cutting_stock.solve(
        lengths, counts, capacity, tolerance, _SMOOTHING, rounds, pivots, prices
    )
    starts, indices, copies = patterns
    basis, packs = basis[packs > 1e-9], packs[packs > 1e-9]
    sizes = starts[basis + 1] - starts[basis]
    ends = np.cumsum(sizes)
    at = np.repeat(starts[basis] - ends + sizes, sizes) + np.arange(sizes.sum())
    prices *= 1 - _MARGIN
    bound = float(sum((counts * prices).tolist()))  # in order: NumPy's order of summation depends on the machine
    starts = np.concatenate([[0], ends])
    return CuttingStock(lengths, counts, prices, bound, starts, indices[at], copies[at], packs, int(taken), int(steps))


def group_lengths(lengths: np.ndarray, capacity: int, limit: int = GROUPS) -> tuple[np.ndarray, np.ndarray]:
    """Count the distinct lengths; beyond `limit` of them, round some down so that `limit` are left.

    Groups are neighbouring lengths and take the shortest one's place. Among all such groups, these lose the fewest
    tokens: common lengths stay as they are. A packing of the lengths is also one of the rounded lengths, so a lower
    bound on packs for these holds for those.

    Args:
        lengths: int (n,), each from 1 to `capacity`.
        capacity: L.
        limit: distinct lengths at most.

    Returns:
        lengths: int64 (m,), distinct, ascending.
        counts: int64 (m,), items of each.

    >>> group_lengths(np.array([3, 3, 5, 6, 9]), 10, limit=3)
    (array([3, 5, 9]), array([2, 2, 1]))
    """
    return group_counts(np.bincount(np.asarray(lengths, np.int64), minlength=capacity + 1), limit)


def group_counts(counts: np.ndarray, limit: int = GROUPS) -> tuple[np.ndarray, np.ndarray]:
    """Return what `group_lengths` returns, for a histogram: `counts[i]` items of length i."""
    distinct = np.flatnonzero(counts)
    counts = counts[distinct].astype(np.int64)
    if len(distinct) <= limit:
        return distinct, counts
    starts = _cutting_stock.group_starts(distinct, counts, limit)
    return distinct[starts], np.add.reduceat(counts, starts)
