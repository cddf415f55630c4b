from __future__ import annotations

import csv
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import Packing, Rows, pack_lengths
from patchnpack.packer.binpacking.pricing.cutting_stock import group_lengths, solve_cutting_stock
from patchnpack.packer.binpacking.pricing.prices import UNIT, Prices, price_table
from patchnpack.packer.planning.measure import measure

SIZES = Path(__file__).resolve().parents[5] / "shared" / "data" / "sizes"

histograms = st.integers(1, 40).flatmap(
    lambda capacity: st.tuples(
        st.lists(st.integers(0, 50), min_size=capacity + 1, max_size=capacity + 1).map(lambda counts: [0, *counts[1:]]),
        st.just(capacity),
    )
)


@given(histograms)
@settings(max_examples=100, deadline=None)
def test_no_pack_is_worth_more_than_the_unit_and_all_items_are_worth_the_bound(
    histogram: tuple[list[int], int],
) -> None:
    counts, capacity = np.array(histogram[0]), histogram[1]
    prices = Prices.of_counts(counts, capacity)
    value, most = price_table(prices, capacity)
    assert most[capacity] // (capacity + 1) <= UNIT
    lengths = np.repeat(np.arange(capacity + 1), counts)
    bound = solve_cutting_stock(*group_lengths(lengths, capacity), capacity).bound
    worth = int((value // (capacity + 1))[lengths].sum())
    assert bound - len(lengths) / UNIT <= worth / UNIT <= bound + 1e-6 * len(lengths)
    assert prices == Prices.of_counts(counts, capacity)


@given(
    prices=st.lists(st.integers(1, 300), min_size=1, max_size=5, unique=True).map(sorted),
    lengths=st.sets(st.integers(1, 30), min_size=5, max_size=5).map(sorted),
    capacity=st.integers(1, 30),
)
@settings(max_examples=60, deadline=None)
def test_the_most_value_in_a_room_is_that_of_the_best_multiset(
    prices: list[int], lengths: list[int], capacity: int
) -> None:
    table = Prices(tuple(lengths[: len(prices)]), tuple(prices))
    value, most = price_table(table, capacity)
    price = [max([p for n, p in zip(table.lengths, prices, strict=True) if n <= i], default=0) for i in range(31)]
    assert value.tolist() == [price[i] * (capacity + 1) + i for i in range(capacity + 1)]
    room = min(capacity, 12)
    best = max(
        sum(price[i] for i in items)
        for size in range(room + 1)
        for items in combinations_with_replacement([n for n in (1, *lengths) if n <= room], size)
        if sum(items) <= room
    )
    assert most[room] == best * (capacity + 1) + room


@pytest.mark.parametrize(
    ("lengths", "values", "message"),
    [
        ((3, 3), (1, 2), r"lengths is \(3, 3\); it must ascend, from at least 1"),
        ((3, 4), (2, 2), r"values is \(2, 2\); it must ascend, from at least 1"),
        ((0,), (1,), r"lengths is \(0,\); it must ascend, from at least 1"),
        ((3,), (1025,), "values ends with 1025; a price is at most 1024, the worth of a pack"),
        ((3,), (0.5,), r"values is \(0.5,\); it must be a tuple of whole numbers"),
        ([3], (1,), r"lengths is \[3\]; it must be a tuple of whole numbers"),
        ((3, 4), (1,), "there are 2 lengths and 1 values; give one value each"),
    ],
)
def test_prices_that_cannot_be_are_refused(lengths: Any, values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prices(lengths, values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "prices are given and algorithm is 'auto'; only algorithm='priced' uses prices"),
        ({"algorithm": "priced", "prices": Prices((3,), (5,))}, "it must be a tuple of Prices, one per patch size"),
        ({"algorithm": "priced", "prices": ()}, "there are 0 prices for 1 patch sizes; give one Prices per size"),
    ],
)
def test_a_packing_refuses_prices_that_do_not_belong_to_it(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Packing(**({"prices": (Prices((3,), (5,)),)} | changes))


def test_prices_are_left_out_where_what_they_belong_to_changes() -> None:
    packing = Packing(algorithm="priced", prices=(Prices((3,), (5,)),))
    assert packing.replace(lookahead=9, seq_len=1024, algorithm="priced").prices == packing.prices
    for changes in ({"algorithm": "auto"}, {"seq_len": 999}, {"patch_size": 8}):
        assert packing.replace(**changes).prices is None
    given = (Prices((4,), (6,)),)
    assert packing.replace(seq_len=999, prices=given).prices == given


def test_lengths_of_large_capacities_are_priced_in_steps() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.choice([4099, 8200, 13_000, 25_001, 50_000], 5000)
    fine, coarse = (Prices.of_counts(np.bincount(lengths * times), 65_536 * times) for times in (1, 16))
    price = [np.array(table.values)[np.searchsorted(table.lengths, [4099 * n, 50_000 * n], side="right") - 1]
             for table, n in ((fine, 1), (coarse, 16))]  # fmt: skip
    assert np.abs(price[0] - price[1]).max() <= 8
    short = Prices.of_counts(np.bincount([1, 2, 60_000]), 65_536)
    assert short.lengths[0] >= 1


def test_no_items_have_no_prices() -> None:
    assert Prices.of_counts(np.zeros(9, np.int64), 8) == Prices((), ())


def _share_filled(lengths: np.ndarray, capacity: int, algorithm: Any, lookahead: int) -> float:
    packs = len(pack_lengths(lengths, capacity, algorithm=algorithm, lookahead=lookahead, max_items=10**6)[1]) - 1
    return 100 * float(lengths.sum()) / packs / capacity


def test_few_common_lengths_and_a_rare_one_are_packed_almost_as_full_as_they_can_be() -> None:
    rng = np.random.default_rng(0)
    common, tail = rng.choice([620, 713, 806, 868], 20_000, p=[0.2, 0.2, 0.2, 0.4]), rng.integers(100, 1500, 20_000)
    lengths = np.where(rng.random(20_000) < 0.9, common, tail)
    bound = solve_cutting_stock(*group_lengths(lengths, 2048), 2048).bound
    full = 100 * float(lengths.sum()) / bound / 2048
    assert _share_filled(lengths, 2048, "priced", 256) > full - 1.5
    assert _share_filled(lengths, 2048, "subset_sum", 256) < full - 5


@pytest.mark.skipif(not SIZES.is_dir(), reason=f"there are no size tables in {SIZES}")
@pytest.mark.parametrize(("table", "seq_len"), [("voc2012", 2048), ("coco_val2017", 4096), ("movie_posters", 2048)])
def test_real_sizes_are_packed_within_a_point_of_the_bound(table: str, seq_len: int) -> None:
    with (SIZES / f"{table}.csv").open() as file:
        sizes = np.array([[int(row["width"]), int(row["height"])] for row in csv.DictReader(file)])
    sizes = sizes[np.random.default_rng(0).integers(0, len(sizes), 20_000)]
    rows = Rows.of_sizes(sizes[:, 0], sizes[:, 1])
    lengths = measure(rows, Packing(seq_len=seq_len), seed=0, epoch=0)[0].keep.astype(np.int64)
    bound = solve_cutting_stock(*group_lengths(lengths, seq_len), seq_len).bound
    assert _share_filled(lengths, seq_len, "auto", 256) > 100 * float(lengths.sum()) / bound / seq_len - 1.0
