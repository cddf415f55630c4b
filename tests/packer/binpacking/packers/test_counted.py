"""The compiled steps for items that count for several of the K per pack, each on its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchnpack.packer.binpacking.packers import _counted, _decreasing


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=120),
    max_items=st.integers(1, 8),
    lookahead=st.integers(1, 20),
    flush=st.booleans(),
)
@settings(max_examples=150, deadline=None)
def test_best_fit_decreasing_of_items_that_count_for_one_equals_the_packer_without_counts(
    lengths: list[int], max_items: int, lookahead: int, flush: bool
) -> None:
    made = []
    for packer, counts in ((_counted, np.ones(len(lengths), np.int64)), (_decreasing, None)):
        order, offsets = np.empty(len(lengths), np.int64), np.zeros(len(lengths) + 1, np.int64)
        packs = packer.best_fit_decreasing(
            np.array(lengths, np.int64), counts, 30, max_items, lookahead, flush, order, offsets
        )
        made.append((order[: offsets[packs]].tolist(), offsets[: packs + 1].tolist()))
    assert made[0] == made[1]


@pytest.mark.parametrize("numbered", [False, True])
def test_requeue_queues_the_waiting_items_that_count_for_few_enough_in_order_of_arrival(numbered: bool) -> None:
    lengths, counts = np.array([5, 7, 5, 7, 5, 9, 5]), np.array([1, 1, 2, 4, 2, 4, 1])
    gone = np.array([True, False, False, False, False, False, False])
    capacity, n = 100, len(lengths)
    head, tail = np.full(capacity + 1, -1, np.int64), np.full(capacity + 1, -1, np.int64)
    following = np.full(n, -1, np.int64)
    words, summary = np.zeros((capacity >> 6) + 1, np.uint64), np.zeros(1, np.uint64)
    number = np.zeros(capacity + 1, np.int64) if numbered else None
    queues = (head, tail, following, words, summary, number)
    assert _counted.requeue(lengths, counts, gone, 1, n, 4, *queues)[:3] == (6, 38, 4)  # every item that waits
    waiting, tokens, heaviest, peak = _counted.requeue(lengths, counts, gone, 1, n, 2, *queues)
    assert (waiting, tokens, heaviest, peak) == (4, 22, 2, 3 if numbered else 0)
    queued: dict[int, list[int]] = {}
    for length in np.flatnonzero(head >= 0).tolist():
        item, queued[length] = head[length], []
        while item >= 0:
            queued[length].append(int(item))
            item = following[item]
    assert queued == {5: [2, 4, 6], 7: [1]}
    assert [length for length in range(64) if int(words[0]) >> length & 1] == [5, 7]
    assert summary.tolist() == [1]
    if number is not None:
        assert {length: count for length, count in enumerate(number.tolist()) if count} == {5: 3, 7: 1}


def test_most_items_divides_what_is_left_by_the_smallest_count_that_waits() -> None:
    counts, gone = np.array([1, 3, 5, 2]), np.array([True, False, False, False])
    assert _counted.most_items(counts, gone, 1, 3, 10) == 3  # the last item has not entered
    assert _counted.most_items(counts, gone, 1, 4, 10) == 5
    assert _counted.most_items(counts, np.ones(4, np.bool_), 0, 4, 10) == 1
