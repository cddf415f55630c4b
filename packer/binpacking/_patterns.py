"""The compiled steps of `patterns.py`: fill packs by patterns of lengths, and give them items of these lengths."""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._length_bitmap import clear_bit, highest, set_bit

# n items, counts (L + 1,) of each length; L capacity, K items per pack at most. Groups are runs of neighbouring
# lengths, from shortest[g] to longest[g]. Pattern p holds copies[at] items of the group groups[at] for `at` from
# starts[p] to starts[p + 1]. Packs are written as lengths: pack i is chosen[ends[i]:ends[i + 1]].


@njit(nogil=True, cache=True)
def _fill(words, summary, counts, longest, groups, copies, slack, max_items, chosen, out):  # type: ignore[no-untyped-def]
    """Fill one pack by a pattern; returns the end of the pack in `chosen`, and whether each place was taken.

    Each place gets the longest item of its group, or an item that is longer by no more than `slack`, the room that
    earlier places and the pattern leave.
    """
    start = out
    for at in range(len(groups)):
        for _ in range(copies[at]):
            limit = longest[groups[at]] + slack
            length = highest(words, summary, limit)
            if length <= 0 or out - start == max_items:
                return out, False
            counts[length] -= 1
            if counts[length] == 0:
                clear_bit(words, summary, length)
            chosen[out] = length
            out += 1
            slack = limit - length
    return out, True


@njit(nogil=True, cache=True)
def fill_patterns(counts, shortest, longest, starts, groups, copies, packs, max_items, chosen, ends, made):  # type: ignore[no-untyped-def]
    """Fill up to packs[p] packs by pattern p, for each p; returns the number of packs made, with the first `made`.

    Takes the items from `counts`. A pack that would hold fewer tokens than its pattern of the groups' shortest lengths
    is undone, and its pattern left: the items that it is for are gone.
    """
    capacity = len(counts) - 1
    words, summary = np.zeros((capacity >> 6) + 1, np.uint64), np.zeros((capacity >> 12) + 1, np.uint64)
    for length in range(1, capacity + 1):
        if counts[length] > 0:
            set_bit(words, summary, length)
    for p in range(len(packs)):
        own, number = groups[starts[p] : starts[p + 1]], copies[starts[p] : starts[p + 1]]
        least, slack = np.int64(0), np.int64(capacity)
        for at in range(len(own)):
            least += shortest[own[at]] * number[at]
            slack -= longest[own[at]] * number[at]
        for _ in range(packs[p]):
            start = ends[made]
            end, whole = _fill(words, summary, counts, longest, own, number, slack, max_items, chosen, start)
            tokens = np.int64(0)
            for at in range(start, end):
                tokens += chosen[at]
            if not whole or tokens < least:
                for at in range(start, end):
                    counts[chosen[at]] += 1
                    set_bit(words, summary, chosen[at])
                break
            made += 1
            ends[made] = end
    return made


@njit(nogil=True, cache=True)
def take_items(lengths, capacity, chosen, ends, order, offsets):  # type: ignore[no-untyped-def]
    """Give the packs items of their lengths, each length's oldest to the first pack that holds it.

    Items within packs are in order of arrival, as are the packs by their oldest items.
    """
    n, packs = len(lengths), len(ends) - 1
    starts = np.zeros(capacity + 2, np.int64)
    for i in range(n):
        starts[lengths[i] + 1] += 1
    for length in range(1, capacity + 2):
        starts[length] += starts[length - 1]
    items, pack = np.empty(n, np.int64), np.empty(n, np.int64)
    for i in range(n):
        items[starts[lengths[i]]] = i
        starts[lengths[i]] += 1  # ends where the next length starts
    for p in range(packs - 1, -1, -1):
        for at in range(ends[p], ends[p + 1]):
            starts[chosen[at]] -= 1
            pack[items[starts[chosen[at]]]] = p
    number, opened = np.full(packs, -1, np.int64), 0
    free = np.empty(packs, np.int64)
    for i in range(n):
        p = pack[i]
        if number[p] < 0:
            number[p], free[opened] = opened, offsets[opened]
            offsets[opened + 1] = offsets[opened] + ends[p + 1] - ends[p]
            opened += 1
        order[free[number[p]]] = i
        free[number[p]] += 1
