from __future__ import annotations

import re
from itertools import pairwise
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from patchnpack.packer import pack_lengths
from patchnpack.packer.binpacking.algorithms import CHOICES, Algorithm
from patchnpack.packer.binpacking.pack_lengths import SAMPLE, pack_ready, resolve_algorithm
from patchnpack.packer.binpacking.pricing.prices import Prices

DECREASING: list[Algorithm] = ["first_fit_decreasing", "best_fit_decreasing"]
ALGORITHMS: list[Algorithm] = ["next_fit", "first_fit", "best_fit", *DECREASING, *CHOICES]

every_algorithm = pytest.mark.parametrize("algorithm", ALGORITHMS)


@st.composite
def problems(draw: st.DrawFn) -> dict[str, Any]:
    """Lengths and limits. Capacities above 4096 make the bitmap of lengths more than one word of summary long."""
    capacity = draw(st.one_of(st.integers(1, 30), st.integers(60, 70), st.integers(4000, 20_000)))
    largest = draw(st.sampled_from([1, capacity // 4, capacity // 2, capacity]))
    return {
        "lengths": np.array(draw(st.lists(st.integers(1, max(1, largest)), max_size=120)), np.int64),
        "capacity": capacity,
        "max_items": draw(st.one_of(st.integers(1, 5), st.just(64))),
        "lookahead": draw(st.one_of(st.integers(1, 12), st.just(256))),
    }


def _packs(order: np.ndarray, offsets: np.ndarray) -> list[list[int]]:
    assert order.dtype == offsets.dtype == np.int64
    assert offsets[0] == 0
    assert offsets[-1] == len(order)
    return [order[a:b].tolist() for a, b in pairwise(offsets)]


def test_every_algorithm_of_the_configuration_is_tested_here() -> None:
    assert set(get_args(Algorithm)) == {"auto", *ALGORITHMS}


@every_algorithm
@given(problem=problems())
@settings(max_examples=80, deadline=None)
def test_each_item_is_in_exactly_one_pack_and_no_pack_is_empty_or_over_a_limit(
    algorithm: Algorithm, problem: dict[str, Any]
) -> None:
    lengths = problem["lengths"]
    packs = _packs(*pack_lengths(**problem, algorithm=algorithm))
    assert sorted(item for pack in packs for item in pack) == list(range(len(lengths)))
    for pack in packs:
        assert 1 <= len(pack) <= problem["max_items"]
        assert lengths[pack].sum() <= problem["capacity"]


@every_algorithm
@given(problem=problems())
@settings(max_examples=20, deadline=None)
def test_packing_is_deterministic_and_does_not_modify_the_lengths(
    algorithm: Algorithm, problem: dict[str, Any]
) -> None:
    before = problem["lengths"].copy()
    first, again = (pack_lengths(**problem, algorithm=algorithm) for _ in range(2))
    np.testing.assert_array_equal(problem["lengths"], before)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)


@every_algorithm
@given(problem=problems(), data=st.data())
@settings(max_examples=80, deadline=None)
def test_packs_do_not_depend_on_how_arrivals_are_split(
    algorithm: Algorithm, problem: dict[str, Any], data: st.DataObject
) -> None:
    lengths = problem.pop("lengths")
    if algorithm == "priced":
        problem["prices"] = Prices.of_counts(np.bincount(lengths), problem["capacity"])
    each = list(range(1, len(lengths)))
    cuts = data.draw(st.one_of(st.just(each), st.lists(st.integers(0, len(lengths)), max_size=8).map(sorted)))
    waiting = np.empty(0, np.int64)
    found: list[list[int]] = []
    for begin, end in zip([0, *cuts], [*cuts, len(lengths)], strict=True):
        arrivals = np.concatenate([waiting, np.arange(begin, end)])
        order, offsets = pack_ready(lengths[arrivals], **problem, algorithm=algorithm, flush=False)
        found += [arrivals[pack].tolist() for pack in _packs(order, offsets)]
        waiting = np.delete(arrivals, order)
    order, offsets = pack_ready(lengths[waiting], **problem, algorithm=algorithm, flush=True)
    found += [waiting[pack].tolist() for pack in _packs(order, offsets)]
    assert found == _packs(*pack_ready(lengths, **problem, algorithm=algorithm, flush=True))


@pytest.mark.parametrize("algorithm", CHOICES)
@given(problem=problems())
@example({"lengths": np.array([1] + [10] * 50), "capacity": 10, "max_items": 64, "lookahead": 4})
@settings(max_examples=80, deadline=None)
def test_no_item_waits_for_more_than_lookahead_packs(algorithm: Algorithm, problem: dict[str, Any]) -> None:
    lookahead = problem["lookahead"]
    order, offsets = pack_lengths(**problem, algorithm=algorithm)
    leaves = np.empty(len(order), np.int64)
    leaves[order] = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # An item enters once fewer than R others wait.
    enters = np.searchsorted(offsets, np.arange(len(order)) - lookahead + 1)
    assert (leaves >= enters).all()
    assert (leaves - enters < lookahead).all()


@pytest.mark.parametrize("algorithm", ["first_fit", "best_fit"])
@given(problem=problems())
@example({"lengths": np.ones(300, np.int64), "capacity": 1000, "max_items": 1000, "lookahead": 256})
@settings(max_examples=60, deadline=None)
def test_online_fits_hold_fewer_than_lookahead_items_after_each_arrival(
    algorithm: Algorithm, problem: dict[str, Any]
) -> None:
    limits = {name: value for name, value in problem.items() if name != "lengths"}
    lengths = problem["lengths"]
    gone: list[int] = []
    for n in range(1, len(lengths) + 1):
        order, _ = pack_ready(lengths[:n], **limits, algorithm=algorithm, flush=False)
        assert order[: len(gone)].tolist() == gone
        gone = order.tolist()
        assert n - len(gone) < limits["lookahead"]


@every_algorithm
def test_packs_that_no_item_can_join_are_emitted_without_a_flush(algorithm: Algorithm) -> None:
    order, _ = pack_ready(np.full(8, 10), 10, max_items=4, algorithm=algorithm, lookahead=2, flush=False)
    # next_fit needs the next item to close a full pack; largest_fit keeps R - 1 items waiting.
    assert len(order) >= 7


@every_algorithm
def test_a_lookahead_beyond_all_items_costs_no_memory(algorithm: Algorithm) -> None:
    packs = _packs(*pack_lengths([6, 5, 4, 3, 2], 10, algorithm=algorithm, lookahead=2**50))
    assert sum(map(len, packs)) == 5


@pytest.mark.parametrize("algorithm", DECREASING)
def test_decreasing_algorithms_work_on_all_lengths_at_once_offline_and_on_blocks_of_4_lookaheads_online(
    algorithm: Algorithm,
) -> None:
    lengths = np.random.default_rng(0).integers(1, 100, 50)
    whole, _ = pack_lengths(lengths, 128, algorithm=algorithm, lookahead=2)
    assert lengths[whole[0]] == lengths.max()
    order, _ = pack_ready(lengths, 128, max_items=64, algorithm=algorithm, lookahead=2, flush=False)
    assert [sorted(order[i : i + 8].tolist()) for i in range(0, 48, 8)] == [[*range(i, i + 8)] for i in range(0, 48, 8)]
    assert len(order) == 48


def test_auto_is_the_choice_that_packs_the_first_lengths_into_the_fewest_packs() -> None:
    rng = np.random.default_rng(0)
    spiked = np.where(rng.random(20_000) < 0.5, 300, rng.integers(20, 400, 20_000))
    common = np.where(rng.random(20_000) < 0.5, 380, rng.choice([90, 180, 270, 500], 20_000))
    even = rng.integers(1, 1025, 20_000)
    chosen = []
    for lengths in (spiked, common, even, even[:0]):
        algorithm, prices = resolve_algorithm("auto", lengths, 1024, max_items=64, lookahead=256)
        packs = {
            name: len(pack_ready(lengths[:SAMPLE], 1024, max_items=64, algorithm=name, lookahead=256, flush=True,
                                 prices=Prices.of_counts(np.bincount(lengths), 1024))[1])
            for name in CHOICES
        }  # fmt: skip
        assert packs[algorithm] == min(packs.values())
        assert (prices is not None) == (algorithm == "priced")
        assert _packs(*pack_lengths(lengths, 1024)) == _packs(*pack_lengths(lengths, 1024, algorithm=algorithm))
        chosen.append(algorithm)
    assert chosen[1:] == ["priced", "largest_fit", "subset_sum"]
    assert resolve_algorithm("first_fit", even, 1024, max_items=64, lookahead=256) == ("first_fit", None)


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.uint64])
def test_lengths_may_be_of_any_integer_dtype_and_stride(dtype: type) -> None:
    lengths: np.ndarray = np.random.default_rng(1).integers(1, 100, 200).astype(dtype)
    want = _packs(*pack_lengths(lengths[::2].tolist(), 128))
    assert _packs(*pack_lengths(lengths[::2], 128)) == want


@every_algorithm
def test_no_items_make_no_packs(algorithm: Algorithm) -> None:
    assert _packs(*pack_lengths([], 10, algorithm=algorithm)) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lengths": [3, 11]}, r"lengths\[1\] is 11; each length must be from 1 to the capacity, 10: shrink"),
        ({"lengths": [3, 2, 0]}, r"lengths\[2\] is 0; .* from 1 to the capacity, 10"),
        ({"lengths": [-4]}, r"lengths\[0\] is -4; "),
        ({"lengths": [3.7]}, r"lengths has dtype float64; each length must be a whole number"),
        ({"lengths": [True]}, r"lengths has dtype bool"),
        ({"lengths": [[3], [4]]}, r"lengths has shape \(2, 1\); it must be one-dimensional"),
        ({"lengths": 3}, r"lengths has shape \(\); it must be one-dimensional"),
        ({"capacity": 0}, r"capacity is 0; it must be at least 1"),
        ({"capacity": 10.5}, r"capacity is 10\.5; it must be a whole number"),
        ({"max_items": 0}, r"max_items is 0; it must be at least 1"),
        ({"lookahead": -2}, r"lookahead is -2; it must be at least 1"),
        ({"algorithm": "magic"}, r"algorithm is 'magic'; it must be one of 'auto', 'next_fit', 'first_fit', 'best"),
    ],
)
def test_errors_name_the_value_and_the_limit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        pack_lengths(**{"lengths": [1, 2], "capacity": 10, **arguments})


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        ([1, 2], "counts has shape (2,); it must have one count per length, (3,)"),
        ([1.0, 2, 3], "counts has dtype float64; each count must be a whole number"),
        (
            [1, 0, 3],
            "counts[1] is 0; each count must be from 1 to max_items, 4: raise max_items, or leave",
        ),
        ([1, 2, 5], "counts[2] is 5; each count must be from 1 to max_items, 4"),
    ],
)
def test_wrong_counts_are_an_error_that_names_them(counts: list[int], says: str) -> None:
    for algorithm in get_args(Algorithm):
        with pytest.raises(ValueError, match=re.escape(says)):
            pack_lengths([3, 4, 5], 10, max_items=4, algorithm=algorithm, counts=counts)


@pytest.mark.parametrize("algorithm", get_args(Algorithm))
def test_counts_of_one_change_nothing(algorithm: Algorithm) -> None:
    lengths = np.random.default_rng(0).integers(1, 60, 500)
    plain = pack_lengths(lengths, 64, max_items=3, algorithm=algorithm, lookahead=50)
    counted = pack_lengths(lengths, 64, max_items=3, algorithm=algorithm, lookahead=50, counts=np.ones(500, np.int8))
    assert [each.tolist() for each in plain] == [each.tolist() for each in counted]
