"""Compiled `subset_sum`: a pack starts with the oldest waiting item and is closed by the subset that fills it best.

It takes the arguments of the packers in `_classical.py`, and two more: `least` (n,), the length each item may be cut
to, and `widest`, the largest cut of any item. With `widest` 0 no item is cut and `least` is not read. `reference.py`
defines the packer in plain Python.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._counted import most_items, requeue
from patchnpack.packer.binpacking.packers._length_bitmap import clear_bit, highest, longer, set_bit

# n items (images), each of a length (tokens); L capacity of a pack, R lookahead, K items per pack at most

_CLOSING = 256  # a closing subset is chosen from at most this many items: bounds time and memory at large lookaheads


@njit(nogil=True, cache=True)
def _has_sum(reach, i, total):  # type: ignore[no-untyped-def]
    return reach[i, total >> 6] >> np.uint64(total & 63) & np.uint64(1) != 0


@njit(nogil=True, cache=True)
def _add_length(reach, i, length, size):  # type: ignore[no-untyped-def]
    """Set reach[i + 1] = reach[i] | reach[i] << length, in `size` words.

    These are the sums without and with one more length.
    """
    skip, bits = length >> 6, np.uint64(length & 63)
    for w in range(min(skip, size)):
        reach[i + 1, w] = reach[i, w]
    if bits == 0:
        for w in range(skip, size):
            reach[i + 1, w] = reach[i, w] | reach[i, w - skip]
    elif skip < size:
        reach[i + 1, skip] = reach[i, skip] | reach[i, 0] << bits
        for w in range(skip + 1, size):
            low = reach[i, w - skip - 1] >> (np.uint64(64) - bits)
            reach[i + 1, w] = reach[i, w] | reach[i, w - skip] << bits | low


@njit(nogil=True, cache=True)
def _commonest(count, words, summary, longest):  # type: ignore[no-untyped-def]
    """The most common length, the longest of equals, and its number of items."""
    common, items = np.int64(0), np.int64(0)
    length = highest(words, summary, longest)
    while length > 0:
        if count[length] > items:
            common, items = length, count[length]
        length = highest(words, summary, length - 1)
    return common, items


@njit(nogil=True, cache=True)
def _common_length(count, words, summary, waiting, peak):  # type: ignore[no-untyped-def]
    """The length that at least a quarter of the `waiting` items have, or 0, and `peak`.

    `peak`, an upper bound of every length's count, is tightened where lengths are counted. Below a quarter none needs
    counting.
    """
    if 4 * peak < waiting:
        return np.int64(0), peak
    common, peak = _commonest(count, words, summary, np.int64(len(count) - 1))
    return common if 4 * peak >= waiting else np.int64(0), peak


@njit(nogil=True, cache=True)
def _exact(room, items_left, common, copies, count, words, summary, chosen):  # type: ignore[no-untyped-def]
    """Fill the room exactly, if possible; returns the number of items, else 0.

    `chosen` gets as many copies of the common length as possible and one or two others.
    """
    for j in range(copies, -1, -1):
        rest = room - j * common
        if rest == 0 or (j < items_left and rest != common and count[rest] > 0):
            chosen[:j] = common
            chosen[j] = rest
            return j if rest == 0 else j + 1
    for j in range(min(copies, items_left - 2), -1, -1):
        rest = room - j * common
        length = highest(words, summary, rest - 1)
        while 2 * length >= rest:
            other = rest - length
            if length != common and other != common and count[other] > (1 if other == length else 0):
                chosen[:j] = common
                chosen[j], chosen[j + 1] = length, other
                return j + 2
            length = highest(words, summary, length - 1)
    return 0


@njit(nogil=True, cache=True)
def _thirds(length, capacity):  # type: ignore[no-untyped-def]
    """See `reference.thirds`."""
    if 4 * (capacity - length) <= capacity:
        return 3
    return (4 * length > capacity) + (2 * length > capacity)


@njit(nogil=True, cache=True)
def _next_long(room, pairs, capacity, count, words, summary):  # type: ignore[no-untyped-def]
    """See `reference.next_long`."""
    largest = highest(words, summary, room)
    if not pairs or 2 * room <= capacity:  # no two items over a quarter of L fit
        return largest
    both, larger = largest + (capacity >> 6) if 2 * largest > capacity else np.int64(0), largest
    length = highest(words, summary, room - (capacity >> 2))
    while 2 * length > both:
        other = highest(words, summary, min(length if count[length] > 1 else length - 1, room - length))
        if 4 * other > capacity and length + other > both:
            both, larger = length + other, length
        length = highest(words, summary, length - 1)
    return larger


@njit(nogil=True, cache=True)
def _close(room, items_left, common, count, words, summary, reach, candidates, chosen):  # type: ignore[no-untyped-def]
    """Write the lengths that close a pack to `chosen`; returns their number.

    See `reference.closing_subset`.
    """
    copies = min(room // common, count[common], items_left) if 0 < common <= room else np.int64(0)
    number = _exact(room, items_left, common, copies, count, words, summary, chosen)
    if number > 0:
        return number
    # reach[i] has one bit per sum of a subset of the first i lengths of `candidates`.
    size = (room >> 6) + 1
    reach[0, :size] = 0
    reach[0, 0] = 1
    goal, i = room - copies * common, 0
    length = highest(words, summary, room)
    while length > 0 and i < len(candidates) and not _has_sum(reach, i, goal):
        if length != common:
            for _ in range(min(count[length], room // length)):
                candidates[i] = length
                _add_length(reach, i, length, size)
                i += 1
                if i == len(candidates) or _has_sum(reach, i, goal):
                    break
        length = highest(words, summary, length - 1)
    best, number, total = room + 1, np.int64(0), np.int64(0)
    for j in range(copies, -1, -1):
        reached = room - j * common
        while not _has_sum(reach, i, reached):
            reached -= 1
        if room - j * common - reached < best:
            best, number, total = room - j * common - reached, j, reached
    chosen[:number] = common
    while total > 0:
        while _has_sum(reach, i - 1, total):
            i -= 1
        i -= 1
        chosen[number] = candidates[i]
        total -= candidates[i]
        number += 1
    if number > items_left:  # too many items: the largest of them also fit
        for i in range(items_left):
            for j in range(i + 1, number):
                if chosen[j] > chosen[i]:
                    chosen[i], chosen[j] = chosen[j], chosen[i]
        number = items_left
    return number


@njit(nogil=True, cache=True)
def subset_sum(lengths, counts, capacity, max_items, lookahead, flush, order, offsets, least, widest):  # type: ignore[no-untyped-def]
    """See `reference.subset_sum`."""
    n = len(lengths)
    max_waiting = min(lookahead, n)
    head = np.full(capacity + 1, -1, np.int64)
    tail = np.full(capacity + 1, -1, np.int64)
    following = np.full(n, -1, np.int64)
    count = np.zeros(capacity + 1, np.int64)
    gone = np.zeros(n, np.bool_)
    words = np.zeros((capacity >> 6) + 1, np.uint64)
    summary = np.zeros((capacity >> 12) + 1, np.uint64)
    candidates = np.empty(min(max_waiting, _CLOSING), np.int64)
    reach = np.empty((len(candidates) + 1, len(words)), np.uint64)
    chosen = np.empty(max_waiting + 2, np.int64)
    packs, out, entered, waiting, oldest, tokens, thirds = 0, 0, 0, 0, 0, 0, 0
    peak = np.int64(0)  # an upper bound of every length's count
    # With counts: a bound on those of queued items, and whether some are set aside.
    heaviest, aside = np.int64(0), False
    while True:
        while waiting < lookahead and entered < n:
            length = lengths[entered]
            if head[length] < 0:
                head[length] = entered
                set_bit(words, summary, length)
            else:
                following[tail[length]] = entered
            tail[length] = entered
            if counts is not None:
                heaviest = max(heaviest, counts[entered])
            count[length] += 1
            peak = max(peak, count[length])
            tokens += length
            thirds += _thirds(length, capacity)
            entered += 1
            waiting += 1
        if waiting == 0 or (waiting < lookahead and not flush):
            return packs
        while gone[oldest]:
            oldest += 1
        length, room, left, arrival = lengths[oldest], capacity, np.int64(max_items), oldest
        common, closing, next_chosen, slack = -1, -1, 0, np.int64(0)
        scarce, pack_thirds = thirds * capacity > 3 * tokens, 0
        while True:
            item = head[length]
            head[length] = following[item]
            if head[length] < 0:
                clear_bit(words, summary, length)
            count[length] -= 1
            tokens -= length
            third = _thirds(length, capacity)
            thirds -= third
            pack_thirds += third
            gone[item] = True
            order[out] = item
            out += 1
            waiting -= 1
            room -= length
            left -= 1 if counts is None else counts[item]
            if room <= 0 or waiting == 0 or left == 0:
                break
            if counts is not None and left < heaviest:
                waiting, tokens, heaviest, peak = requeue(
                    lengths, counts, gone, oldest, entered, left, head, tail, following, words, summary, count
                )
                aside = True
                if waiting == 0:
                    break
            if widest > 0:
                slack += length - least[item]
            if scarce:
                pairs = pack_thirds == 1 and left > 1
                if counts is not None and pairs and left < 2 * heaviest:
                    pairs = most_items(counts, gone, oldest, entered, left) > 1
                length = _next_long(room, pairs, capacity, count, words, summary)
                if length <= 0 and widest > 0:
                    length = longer(words, head, least, room, slack, widest)
                if length <= 0:
                    break
                continue
            if closing < 0:
                if common < 0:
                    common, peak = _common_length(count, words, summary, waiting, peak)
                if 0 < common <= room and 3 * count[common] > waiting:
                    length = common
                    continue
                if counts is None:
                    while gone[arrival]:
                        arrival += 1
                else:
                    while gone[arrival] or counts[arrival] > left:
                        arrival += 1
                if room * waiting >= 6 * tokens and lengths[arrival] <= room:
                    length = lengths[arrival]
                    continue
                items_left = left if counts is None else most_items(counts, gone, oldest, entered, left)
                closing = _close(room, items_left, common, count, words, summary, reach, candidates, chosen)
            if counts is not None:
                while next_chosen < closing and head[chosen[next_chosen]] < 0:  # set aside by now
                    next_chosen += 1
            if next_chosen == closing:
                length = longer(words, head, least, room, slack, widest) if widest > 0 else np.int64(-1)
                if length < 0:
                    break
                continue
            length = chosen[next_chosen]
            next_chosen += 1
        packs += 1
        offsets[packs] = out
        if counts is not None and aside:
            waiting, tokens, heaviest, peak = requeue(
                lengths, counts, gone, oldest, entered, max_items, head, tail, following, words, summary, count
            )
            aside = False
