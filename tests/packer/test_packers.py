from __future__ import annotations

from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer import pack_lengths, reference
from patchnpack.packer.config import Algorithm
from patchnpack.packer.packing import pack_ready

ALGORITHMS = [name for name in get_args(Algorithm) if name != "auto"]


def compare(
    algorithm: Any,
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    least: list[int] | None = None,
) -> list[list[int]]:
    """Holds the compiled packer equal to the plain one; gives the packs."""
    order, offsets = pack_ready(
        np.array(lengths, np.int64),
        capacity,
        max_items=max_items,
        algorithm=algorithm,
        lookahead=lookahead,
        flush=flush,
        least=None if least is None else np.array(least, np.int64),
    )
    found = [order[a:b].tolist() for a, b in pairwise(offsets)]
    plain = getattr(reference, algorithm)
    limits = (lengths, capacity, max_items, lookahead, flush)
    expected: list[list[int]] = plain(*limits) if least is None else plain(*limits, least)
    assert found == expected
    return found


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@given(
    data=st.data(),
    capacity=st.one_of(st.integers(1, 24), st.sampled_from([63, 64, 65, 128, 4095, 4096, 4097, 9000, 20_000])),
    max_items=st.one_of(st.integers(1, 6), st.just(64)),
    lookahead=st.one_of(st.integers(1, 10), st.integers(50, 300)),
    flush=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_compiled_packers_equal_the_reference(
    algorithm: str, data: st.DataObject, capacity: int, max_items: int, lookahead: int, flush: bool
) -> None:
    largest = data.draw(st.sampled_from(sorted({1, max(1, capacity // 8), max(1, capacity // 2), capacity})))
    # Few distinct lengths make one of them common; many make sums of every size.
    values = data.draw(st.lists(st.integers(1, largest), min_size=1, max_size=12))
    each = data.draw(st.sampled_from([st.integers(1, largest), st.sampled_from(values)]))
    compare(algorithm, data.draw(st.lists(each, max_size=100)), capacity, max_items, lookahead, flush)


@pytest.mark.parametrize("algorithm", ["largest_fit", "subset_sum"])
@given(
    items=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6)), max_size=60),
    capacity=st.integers(20, 70),
    max_items=st.sampled_from([1, 3, 64]),
    lookahead=st.sampled_from([1, 5, 40]),
    flush=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_items_that_may_be_cut_close_packs_as_the_reference_does_and_no_pack_is_cut_below_what_fits(
    algorithm: str, items: list[tuple[int, int]], capacity: int, max_items: int, lookahead: int, flush: bool
) -> None:
    lengths, least = [length for length, _ in items], [max(1, length - cut) for length, cut in items]
    for pack in compare(algorithm, lengths, capacity, max_items, lookahead, flush, least):
        own, *others = sum(lengths[i] for i in pack), sum(lengths[i] for i in pack[:-1])
        assert own <= capacity or (sum(least[i] for i in pack) <= capacity and own - capacity <= capacity - others[0])


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("capacity", [1024, 4096])
def test_compiled_packers_equal_the_reference_on_counts_of_photographs(algorithm: str, capacity: int) -> None:
    rng = np.random.default_rng(capacity)
    counts = np.where(rng.random(1500) < 0.5, 768, rng.lognormal(6.2, 0.8, 1500)).clip(20, capacity).astype(int)
    assert len(compare(algorithm, counts.tolist(), capacity, 64, 256, True)) > 200


@pytest.mark.parametrize(
    ("lengths", "capacity", "max_items", "packs"),
    [
        pytest.param([3, 4, 3, 5, 1], 10, 2, [[0, 1], [2, 3], [4]], id="no pair where one more is allowed"),
        pytest.param([5, 1, 2, 3, 4], 20, 64, [[0, 1, 4, 2, 3]], id="room of six means is filled in order"),
        pytest.param([4, 3, 3], 10, 64, [[0, 1, 2]], id="a pair of one length"),
        pytest.param([4, 3, 5, 2, 1], 10, 64, [[0, 2, 4], [1, 3]], id="never one item twice"),
    ],
)
def test_subset_sum_of_a_few_lengths(lengths: list[int], capacity: int, max_items: int, packs: list[list[int]]) -> None:
    assert compare("subset_sum", lengths, capacity, max_items, 5, True) == packs


@pytest.mark.parametrize(
    ("lengths", "first"),
    [
        pytest.param([10, 70, 51, 27], [10, 51, 27], id="two thirds and one, not two alone"),
        pytest.param([30, 51, 34, 25, 75, 75], [30, 51], id="a pair is of two that have a third each"),
        pytest.param([40, 55, 30, 29, 80], [40, 30, 29], id="the pair that fills more than one"),
        pytest.param([40, 34, 75, 75, 75], [40, 34], id="one twice is no pair"),
        pytest.param([10, 75, 26, 51, 75], [10, 75], id="three quarters are three thirds"),
    ],
)
def test_large_items_go_first_where_they_are_what_makes_packs(lengths: list[int], first: list[int]) -> None:
    packs = compare("subset_sum", lengths, 100, 64, 10, True)
    assert [lengths[i] for i in packs[0]] == first


def test_subset_sum_closes_packs_with_subsets_of_the_longest_256_at_most() -> None:
    lengths = np.random.default_rng(0).integers(500, 600, 700) * 2  # even, so an odd room is never filled
    compare("subset_sum", lengths.tolist(), 8191, 64, 600, True)


@pytest.mark.parametrize("capacity", [4096, 16384])
def test_subset_sum_fills_all_but_a_thousandth_of_the_slots_with_photographs(capacity: int) -> None:
    rng = np.random.default_rng(1)
    counts = np.where(rng.random(30_000) < 0.5, 768, rng.lognormal(6.2, 0.8, 30_000)).clip(20, capacity).astype(int)
    packs = len(pack_lengths(counts, capacity, algorithm="subset_sum")[1]) - 1
    assert counts.sum() / (packs * capacity) > 0.998


@pytest.mark.parametrize(("lookahead", "over"), [(256, 1.003), (1024, 1.002)])
def test_subset_sum_is_near_the_bound_where_large_items_are_what_makes_packs(lookahead: int, over: float) -> None:
    rng = np.random.default_rng(1)
    counts = np.where(rng.random(30_000) < 0.5, 768, rng.lognormal(5.8, 1.15, 30_000)).clip(20, 1024).astype(int)
    packs = len(pack_lengths(counts, 1024, algorithm="subset_sum", lookahead=lookahead)[1]) - 1
    bound = sum(reference.thirds(n, 1024) for n in counts.tolist()) / 3
    assert bound > 1.1 * counts.sum() / 1024
    assert packs < over * bound
