"""The compiled classical packers. `reference.py` defines each in plain Python.

All take `lengths` int64 (n,), `counts` int64 (n,) or None, `capacity`, `max_items`, `lookahead` and `flush`, write item
numbers to `order` (n,) and the ends of packs to `offsets` (n + 1,), and return the number of packs. They allocate no
memory per item. `counts` says how many items each counts for; with None, numba leaves out every branch that reads it.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# n items (images), each of a length (tokens); L capacity of a pack, R lookahead, K items per pack at most


@njit(nogil=True, cache=True)
def next_fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.next_fit`. Returns the number of packs written to `order` and `offsets`."""
    packs, used, start, held = 0, 0, 0, 0
    for i in range(len(lengths)):
        is_full = i - start == max_items if counts is None else held + counts[i] > max_items
        if used + lengths[i] > capacity or is_full:
            packs += 1
            offsets[packs] = i
            start, used, held = i, 0, 0
        used += lengths[i]
        if counts is not None:
            held += counts[i]
        order[i] = i
    if flush and start < len(lengths):
        packs += 1
        offsets[packs] = len(lengths)
    return packs


@njit(nogil=True, cache=True)
def _emit(pack, first, following, order, offsets, packs):  # type: ignore[no-untyped-def]
    out = offsets[packs]
    item = first[pack]
    while item >= 0:
        order[out] = item
        out += 1
        item = following[item]
    offsets[packs + 1] = out
    return packs + 1


@njit(nogil=True, cache=True)
def _fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets, best):  # type: ignore[no-untyped-def]
    n = len(lengths)
    following = np.full(n, -1, np.int64)  # the next item of the same pack
    # The open packs, oldest first: at most one per held item, and the pack just opened.
    slots = min(lookahead, n) + 1
    room = np.empty(slots, np.int64)
    count = np.empty(slots, np.int64)  # items of each pack
    weight = count if counts is None else np.empty(slots, np.int64)  # what they count for
    first = np.empty(slots, np.int64)
    last = np.empty(slots, np.int64)
    packs, opened, held = 0, 0, 0
    for i in range(n):
        p, least = opened, capacity + 1
        for q in range(opened):
            if counts is not None and weight[q] + counts[i] > max_items:
                continue
            if lengths[i] <= room[q] < least:
                p, least = q, room[q]
                if not best:
                    break
        if p == opened:
            room[p], count[p], first[p] = capacity, 0, i
            if counts is not None:
                weight[p] = 0
            opened += 1
        else:
            following[last[p]] = i
        last[p] = i
        room[p] -= lengths[i]
        count[p] += 1
        if counts is not None:
            weight[p] += counts[i]
        held += 1
        if room[p] > 0 and weight[p] < max_items:
            if held < lookahead:
                continue
            p = 0
        packs = _emit(p, first, following, order, offsets, packs)
        held -= count[p]
        opened -= 1
        for q in range(p, opened):
            room[q], count[q], first[q], last[q] = room[q + 1], count[q + 1], first[q + 1], last[q + 1]
            if counts is not None:
                weight[q] = weight[q + 1]
    if flush:
        for p in range(opened):
            packs = _emit(p, first, following, order, offsets, packs)
    return packs


@njit(nogil=True, cache=True)
def first_fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.first_fit`."""
    return _fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets, False)


@njit(nogil=True, cache=True)
def best_fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.best_fit`."""
    return _fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets, True)
