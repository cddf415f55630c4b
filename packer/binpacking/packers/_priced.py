"""Compiled `priced`: a pack starts with the oldest waiting item and is closed by the subset of the highest price.

It takes the arguments of the packers in `_classical.py`, and four more: `least` (n,), the length each item may be cut
to, and `widest`, the largest cut of any item (with `widest` 0 no item is cut and `least` is not read); `value`
(L + 1,), an item's value by its length, and `most` (L + 1,), the value that no subset exceeds by the room.
`price_table` writes the last two. `reference_priced.py` defines the packer in plain Python.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._counted import most_items, requeue
from patchnpack.packer.binpacking.packers._length_bitmap import clear_bit, highest, longer, set_bit

# n items (images), each of a length (tokens); L capacity of a pack, R lookahead, K items per pack at most

SEARCHED = 384  # lengths tried for one pack at most: bounds the time of a search that finds no perfect subset


@njit(nogil=True, cache=True)
def price_table(starts, prices, capacity, value, most):  # type: ignore[no-untyped-def]
    """Write the value of each length and the most value in each room to `value` and `most` (L + 1,).

    A length from `starts[i]` to below `starts[i + 1]` has price `prices[i]`, which ascend. A value is the price, then
    the tokens: price * (L + 1) + tokens. `most` solves the unbounded knapsack over all lengths, so it is at least the
    value of any subset that fits.
    """
    unit = np.int64(capacity + 1)
    value[:] = 0
    for i in range(len(starts)):
        end = starts[i + 1] if i + 1 < len(starts) else unit
        value[starts[i] : end] = prices[i]
    most[:] = 0
    price = np.int64(0)
    for length in range(1, capacity + 1):
        if value[length] > max(price, most[length]):  # otherwise shorter items are worth as much
            price = value[length]
            for room in range(length, capacity + 1):
                most[room] = max(most[room], most[room - length] + price)
    for length in range(1, capacity + 1):
        value[length] = value[length] * unit + length
        most[length] = most[length] * unit + length


@njit(nogil=True, cache=True)
def _first_fitting(kinds, start, end, room):  # type: ignore[no-untyped-def]
    """The first of the descending `kinds[start:end]` that is at most `room`, or `end`."""
    while start < end:
        middle = (start + end) >> 1
        if kinds[middle] > room:
            start = middle + 1
        else:
            end = middle
    return start


@njit(nogil=True, cache=True)
def _close(room, items_left, count, words, summary, value, most, kinds, at, rooms, values, chosen):  # type: ignore[no-untyped-def]
    """Write the lengths that close a pack to `chosen`; returns their number. See `reference_priced.closing_by_price`.

    `kinds`, `at`, `rooms` and `values` are work space: the waiting lengths, and at each depth of the search the next
    length to try, the room and the value.
    """
    number_of_kinds = 0
    length = highest(words, summary, room)
    while length > 0:
        kinds[number_of_kinds] = length
        number_of_kinds += 1
        length = highest(words, summary, length - 1)
    if number_of_kinds == 0:
        return 0
    shortest, goal = kinds[number_of_kinds - 1], most[room]
    best, number, searched, depth = np.int64(0), 0, 0, 0
    at[0], rooms[0], values[0] = 0, room, 0
    while depth >= 0:
        i = at[depth]
        if i == number_of_kinds:
            depth -= 1
            continue
        if searched == SEARCHED:
            break
        searched += 1
        at[depth] = i + 1
        length = kinds[i]
        rest, total = rooms[depth] - length, values[depth] + value[length]
        if total + most[rest] <= best:
            continue
        copies, above = 1, depth - 1  # equal lengths are neighbours in the path
        while above >= 0 and at[above] == i + 1:
            copies, above = copies + 1, above - 1
        if copies > count[length]:
            continue
        if total > best:
            best, number = total, depth + 1
            for d in range(number):
                chosen[d] = kinds[at[d] - 1]
            if best == goal:
                break
        if depth + 1 < items_left and rest >= shortest:
            depth += 1
            at[depth] = _first_fitting(kinds, i, number_of_kinds, rest)
            rooms[depth], values[depth] = rest, total
    return number


@njit(nogil=True, cache=True)
def priced(lengths, counts, capacity, max_items, lookahead, flush, order, offsets, least, widest, value, most):  # type: ignore[no-untyped-def]
    """See `reference_priced.priced`."""
    n = len(lengths)
    max_waiting = min(lookahead, n)
    head = np.full(capacity + 1, -1, np.int64)
    tail = np.full(capacity + 1, -1, np.int64)
    following = np.full(n, -1, np.int64)
    count = np.zeros(capacity + 1, np.int64)
    gone = np.zeros(n, np.bool_)
    words = np.zeros((capacity >> 6) + 1, np.uint64)
    summary = np.zeros((capacity >> 12) + 1, np.uint64)
    kinds = np.empty(min(max_waiting, capacity), np.int64)
    at, rooms = np.empty(max_waiting + 1, np.int64), np.empty(max_waiting + 1, np.int64)
    values, chosen = np.empty(max_waiting + 1, np.int64), np.empty(max_waiting + 1, np.int64)
    packs, out, entered, waiting, oldest, tokens = 0, 0, 0, 0, 0, 0
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
            tokens += length
            entered += 1
            waiting += 1
        if waiting == 0 or (waiting < lookahead and not flush):
            return packs
        while gone[oldest]:
            oldest += 1
        length, room, left, arrival = lengths[oldest], capacity, np.int64(max_items), oldest
        closing, next_chosen, slack = -1, 0, np.int64(0)
        while length > 0:
            item = head[length]
            head[length] = following[item]
            if head[length] < 0:
                clear_bit(words, summary, length)
            count[length] -= 1
            tokens -= length
            gone[item] = True
            order[out] = item
            out += 1
            waiting -= 1
            room -= length
            left -= 1 if counts is None else counts[item]
            if room <= 0 or waiting == 0 or left == 0:
                break
            if counts is not None and left < heaviest:
                waiting, tokens, heaviest, _ = requeue(
                    lengths, counts, gone, oldest, entered, left, head, tail, following, words, summary, count
                )
                aside = True
                if waiting == 0:
                    break
            if widest > 0:
                slack += length - least[item]
            if closing < 0:
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
                closing = _close(room, items_left, count, words, summary, value, most, kinds, at, rooms, values, chosen)
            if counts is not None:
                while next_chosen < closing and head[chosen[next_chosen]] < 0:  # set aside by now
                    next_chosen += 1
            if next_chosen < closing:
                length = chosen[next_chosen]
                next_chosen += 1
            else:
                length = longer(words, head, least, room, slack, widest) if widest > 0 else np.int64(-1)
        packs += 1
        offsets[packs] = out
        if counts is not None and aside:
            waiting, tokens, heaviest, _ = requeue(
                lengths, counts, gone, oldest, entered, max_items, head, tail, following, words, summary, count
            )
            aside = False
