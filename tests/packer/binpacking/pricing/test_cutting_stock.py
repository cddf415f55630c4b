"""Prices and bounds of the cutting-stock programme, compared with a linear programme over all patterns."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.optimize import linprog

from patchnpack.packer.binpacking.pricing import _cutting_stock
from patchnpack.packer.binpacking.pricing.cutting_stock import CuttingStock, group_lengths, solve_cutting_stock


def patterns(lengths: list[int], capacity: int) -> list[list[int]]:
    """All sets of lengths that fit, as counts per length."""
    if not lengths:
        return [[]]
    return [
        [copies, *rest]
        for copies in range(capacity // lengths[0] + 1)
        for rest in patterns(lengths[1:], capacity - copies * lengths[0])
    ]


def check(solved: CuttingStock, capacity: int) -> None:
    """Check that the duals are feasible, exactly, and that the fractional packing holds every item."""
    prices = [Fraction(price) for price in solved.prices.tolist()]
    assert all(price >= 0 for price in prices)
    best = [Fraction(0)] * (capacity + 1)
    for room in range(1, capacity + 1):
        fitting = zip(solved.lengths.tolist(), prices, strict=True)
        best[room] = max([best[room - 1], *(best[room - i] + price for i, price in fitting if i <= room)])
    assert best[capacity] <= 1
    exact = sum(c * price for c, price in zip(solved.counts.tolist(), prices, strict=True))
    assert solved.bound == pytest.approx(float(exact), rel=1e-12)
    of = np.repeat(np.arange(len(solved.packs)), np.diff(solved.starts))
    used = np.bincount(of, weights=solved.copies * solved.lengths[solved.indices], minlength=len(solved.packs))
    assert (used <= capacity).all()
    held = np.bincount(solved.indices, weights=solved.copies * solved.packs[of], minlength=len(solved.lengths))
    np.testing.assert_allclose(held, solved.counts, rtol=1e-4, atol=1e-4)
    assert (solved.packs > 0).all()
    assert solved.bound <= solved.packs.sum() * (1 + 1e-6)


@given(
    capacity=st.integers(1, 16),
    counts=st.dictionaries(st.integers(1, 16), st.integers(1, 9) | st.integers(1, 10**9), min_size=1, max_size=7),
)
@settings(max_examples=300, deadline=None)
@example(capacity=10, counts={5: 3})
@example(capacity=16, counts={16: 10**9, 1: 1})
@example(capacity=12, counts=dict.fromkeys(range(1, 13), 12))
def test_bound_equals_the_linear_programme_over_all_patterns(capacity: int, counts: dict[int, int]) -> None:
    lengths = sorted({min(length, capacity) for length in counts})
    number = np.array([counts.get(length, 1) for length in lengths])
    solved = solve_cutting_stock(np.array(lengths), number, capacity)
    check(solved, capacity)
    columns = np.array(patterns(lengths, capacity))
    exact = linprog(np.ones(len(columns)), A_ub=-columns.T, b_ub=-number / number.sum(), method="highs")
    assert solved.bound / number.sum() == pytest.approx(exact.fun, rel=1.1e-4)
    assert solved.bound / number.sum() <= exact.fun + 1e-6  # what HiGHS tolerates


@pytest.mark.parametrize(
    ("lengths", "counts", "capacity"),
    [
        ([1], [1], 1),
        ([1], [10**9], 4096),
        ([4096], [7], 4096),
        ([1, 4096], [10**9, 1], 4096),
        ([2048], [10**9], 4096),
        (range(1, 257), [1] * 256, 1024),
        (range(1000, 1025), [10**9] * 25, 1024),
        (range(300, 560, 2), [3, 10**9] * 65, 1024),
        (range(16, 4097, 16), [1000] * 256, 4096),
    ],
)
def test_equal_huge_and_extreme_counts_end_with_finite_prices(lengths: range, counts: list[int], capacity: int) -> None:
    solved = solve_cutting_stock(np.array(lengths), np.array(counts), capacity)
    check(solved, capacity)
    assert solved.bound >= solved.packs.sum() * (1 - 2e-4)


@pytest.mark.parametrize(("rounds", "pivots"), [(0, 0), (1, 1), (3, 20), (100, 0), (2, 10**6)])
def test_bounds_hold_when_limits_stop_the_rounds(rounds: int, pivots: int) -> None:
    lengths = np.arange(100, 1024, 7)
    solved = solve_cutting_stock(lengths, np.arange(len(lengths)) + 1, 1024, rounds=rounds, pivots=pivots)
    check(solved, 1024)
    assert solved.rounds <= rounds
    assert solved.pivots <= pivots


def test_no_items_need_no_packs() -> None:
    none = np.empty(0, np.int64)
    solved = solve_cutting_stock(none, none, 10)
    assert solved.bound == 0
    assert len(solved.packs) == len(solved.prices) == 0
    assert [len(a) for a in group_lengths(none, 10)] == [0, 0]


def test_solutions_are_the_same_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    lengths, counts = group_lengths(rng.integers(1, 4097, 5000), 4096, 200)
    first, second = (solve_cutting_stock(lengths, counts, 4096) for _ in range(2))
    assert first.pivots > 1000
    for name in ("prices", "packs", "starts", "indices", "copies"):
        assert getattr(first, name).tobytes() == getattr(second, name).tobytes()


def test_rebuilt_inverse_equals_numpys() -> None:
    rng = np.random.default_rng(1)
    m = 40
    matrix = np.diag(rng.integers(1, 5, m)) + (rng.random((m, m)) < 0.05)  # pattern k in row k
    starts = np.concatenate([[0], (matrix > 0).sum(1).cumsum()])
    _, indices = np.nonzero(matrix)
    known = (starts, indices.astype(np.int64), matrix[matrix > 0].astype(np.int64))
    inverse = np.empty((m, m))
    assert _cutting_stock._invert(known, np.arange(m), inverse)
    np.testing.assert_allclose(inverse, np.linalg.inv(matrix), atol=1e-9)
    assert not _cutting_stock._invert(known, np.zeros(m, np.int64), inverse)


@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=80),
    limit=st.integers(1, 12),
)
@settings(max_examples=200, deadline=None)
def test_groups_round_down_and_lose_the_fewest_tokens(lengths: list[int], limit: int) -> None:
    found, counts = group_lengths(np.array(lengths), 40, limit)
    distinct, number = np.unique(lengths, return_counts=True)
    m = len(distinct)
    assert len(found) == min(m, limit)
    assert set(found.tolist()) <= set(distinct.tolist())
    assert found[0] == distinct[0]
    rounded = found[np.searchsorted(found, lengths, side="right") - 1]
    np.testing.assert_array_equal(np.unique(rounded, return_counts=True)[1], counts)

    least = [[math.inf] * (m + 1) for _ in range(limit + 1)]  # of so many groups, over so many lengths
    least[0][0] = 0
    for groups in range(1, limit + 1):
        for end in range(1, m + 1):
            least[groups][end] = min(
                least[groups - 1][start] + int((number[start:end] * (distinct[start:end] - distinct[start])).sum())
                for start in range(end)
            )
    assert sum(lengths) - int(rounded.sum()) == least[min(m, limit)][m]
