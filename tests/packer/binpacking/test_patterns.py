"""Packing by patterns: whole, within limits, never worse than the classical packer, and close to the bound."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import pack_lengths
from patchnpack.packer.binpacking import _patterns, patterns
from patchnpack.packer.binpacking.patterns import pack_by_patterns
from patchnpack.packer.binpacking.pricing.cutting_stock import group_lengths, solve_cutting_stock

SIZES = Path(__file__).parents[4] / "shared" / "data" / "sizes"


def check(lengths: np.ndarray, capacity: int, max_items: int) -> int:
    """Check the packing against its limits and against the classical packer; returns the number of packs."""
    order, offsets = pack_by_patterns(lengths, capacity, max_items)
    assert order.dtype == offsets.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(len(lengths)))
    assert offsets[0] == 0
    assert offsets[-1] == len(lengths)
    packs = [order[a:b] for a, b in pairwise(offsets)]
    assert all(1 <= len(pack) <= max_items for pack in packs)
    assert all(lengths[pack].sum() <= capacity for pack in packs)
    assert all((np.diff(pack) > 0).all() for pack in packs)
    assert (np.diff([pack[0] for pack in packs]) > 0).all()
    classical = pack_lengths(lengths, capacity, max_items=max_items, algorithm="best_fit_decreasing")
    assert len(packs) <= len(classical[1]) - 1
    return len(packs)


@given(
    data=st.data(),
    capacity=st.one_of(st.integers(1, 24), st.sampled_from([63, 64, 65, 1000, 4097])),
    max_items=st.one_of(st.integers(1, 6), st.just(64)),
    groups=st.sampled_from([1, 3, 256]),
)
@settings(max_examples=300, deadline=None)
def test_every_item_is_in_one_pack_within_both_limits_and_no_more_packs_than_best_fit_decreasing(
    data: st.DataObject, capacity: int, max_items: int, groups: int
) -> None:
    values = data.draw(st.lists(st.integers(1, capacity), min_size=1, max_size=12))
    each = data.draw(st.sampled_from([st.integers(1, capacity), st.sampled_from(values)]))
    lengths = np.array(data.draw(st.lists(each, max_size=150)), np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "_GROUPS", groups)
        check(lengths, capacity, max_items)


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=60),
    groups=st.integers(1, 30),
    max_items=st.sampled_from([2, 64]),
)
@settings(max_examples=200, deadline=None)
def test_filled_packs_hold_what_their_pattern_asks_for_and_the_rest_is_left(
    lengths: list[int], groups: int, max_items: int
) -> None:
    capacity = 40
    counts = np.bincount(lengths, minlength=capacity + 1).astype(np.int64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patterns, "_GROUPS", groups)
        shortest, longest, number = patterns._groups(counts)
    assert number.sum() == len(lengths)
    assert (shortest <= longest).all()
    solved = solve_cutting_stock(longest, number, capacity)
    chosen, ends = np.empty(len(lengths), np.int64), np.zeros(len(lengths) + 1, np.int64)
    left, asked = counts.copy(), np.ceil(solved.packs).astype(np.int64)
    made = _patterns.fill_patterns(
        *(left, shortest, longest, solved.starts, solved.indices, solved.copies, asked, max_items, chosen, ends, 0)
    )
    np.testing.assert_array_equal(left + np.bincount(chosen[: ends[made]], minlength=capacity + 1), counts)
    sizes = [
        sorted(np.repeat(shortest[solved.indices[a:b]], solved.copies[a:b]).tolist())
        for a, b in pairwise(solved.starts)
    ]
    for a, b in pairwise(ends[: made + 1]):
        pack = sorted(chosen[a:b].tolist())
        assert len(pack) <= max_items
        assert sum(pack) <= capacity
        assert any(len(size) == len(pack) and sum(size) <= sum(pack) for size in sizes)


def bound(lengths: np.ndarray, capacity: int) -> float:
    """No packing needs fewer packs: tight to a few hundredths of a percent."""
    solved = solve_cutting_stock(*group_lengths(lengths, capacity, 512), capacity, pivots=50_000)
    return max(solved.bound, float(lengths.sum() / capacity))


def drawn(share: float, common: list[int], tail: Callable[[np.random.Generator, int], np.ndarray]) -> np.ndarray:
    """20,000 lengths: a share of a few common ones, and a tail."""
    rng = np.random.default_rng(0)
    lengths = tail(rng, 20_000)
    few = rng.random(len(lengths)) < share
    lengths[few] = rng.choice(common, few.sum())
    return lengths.astype(np.int64)


def lognormal(mean: float, most: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: np.clip(rng.lognormal(mean, 0.5, n), 1, most).astype(np.int64)


@pytest.mark.parametrize(
    ("lengths", "capacity"),
    [
        (drawn(0.5, [768], lognormal(6, 1024)), 1024),
        (drawn(0.8, [1200, 1500, 1125], lognormal(6.8, 4096)), 4096),
        (drawn(0.7, [1064, 1040, 988, 784], lognormal(6.5, 4096)), 4096),
        (drawn(0.3, [2500, 3100], lognormal(8, 8192)), 8192),
        (drawn(0, [1], lambda rng, n: rng.integers(300, 700, n)), 1024),
        (drawn(0, [1], lambda rng, n: rng.integers(200, 2000, n)), 4096),
    ],
    ids=["one common", "three common", "four common", "long tail", "pairs", "many lengths"],
)
def test_packs_are_within_a_thousandth_of_the_bound(lengths: np.ndarray, capacity: int) -> None:
    packs = check(lengths, capacity, 64)
    assert packs <= 1.001 * bound(lengths, capacity) + 1


def test_tight_limits_on_items_are_packed_as_well_as_online() -> None:
    lengths = drawn(0, [1], lognormal(5.2, 16_384))
    online = pack_lengths(lengths, 16_384, max_items=64, algorithm="subset_sum", lookahead=1024)
    assert check(lengths, 16_384, 64) <= len(online[1]) - 1


def test_packings_are_the_same_bit_for_bit() -> None:
    lengths = drawn(0.3, [2500, 3100], lognormal(8, 8192))
    first, second = (pack_by_patterns(lengths, 8192, 64) for _ in range(2))
    for a, b in zip(first, second, strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("capacity", [1024, 4096, 8192])
@pytest.mark.parametrize("table", ["coco_val2017", "chest_xray_pneumonia"])
def test_real_tables_are_within_a_thousandth_of_the_bound(table: str, capacity: int) -> None:
    file = SIZES / f"{table}.csv"
    if not file.is_file():
        pytest.skip(f"{file} is not there")
    sides = -(-np.loadtxt(file, delimiter=",", skiprows=1, dtype=np.int64, usecols=(0, 1)) // 16)
    lengths = sides.prod(axis=1)
    lengths = np.minimum(np.random.default_rng(0).choice(lengths, 20_000), capacity)
    packs = check(lengths, capacity, 64)
    assert packs <= 1.001 * bound(lengths, capacity) + 1


@given(
    items=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 8)), min_size=1, max_size=80),
    capacity=st.integers(40, 120),
    max_items=st.sampled_from([8, 11, 24]),
)
@settings(max_examples=150, deadline=None)
def test_items_that_count_for_several_are_packed_once_within_both_limits_and_as_well_as_best_fit_decreasing(
    items: list[tuple[int, int]], capacity: int, max_items: int
) -> None:
    lengths, counts = np.array(items, np.int64).T.copy()
    order, offsets = pack_by_patterns(lengths, capacity, max_items, counts)
    packs = [order[a:b] for a, b in pairwise(offsets)]
    assert sorted(order.tolist()) == list(range(len(items)))
    assert all(lengths[pack].sum() <= capacity and counts[pack].sum() <= max_items for pack in packs)
    assert all(pack.tolist() == sorted(pack) for pack in packs)
    assert [pack[0] for pack in packs] == sorted(pack[0] for pack in packs)
    classical = pack_lengths(lengths, capacity, max_items=max_items, algorithm="best_fit_decreasing", counts=counts)
    assert len(packs) < len(classical[1])
