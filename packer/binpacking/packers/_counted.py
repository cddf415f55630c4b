"""Steps of the compiled packers for items that count for several of the K per pack.

The packers that choose among waiting items set aside items that count for more than the pack has left, and queue them
again for the next pack.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._decreasing import emit_block, least_room, longest_first
from patchnpack.packer.binpacking.packers._length_bitmap import clear_bit, set_bit

# n items (samples), each of a length (tokens) and a count (images); L capacity of a pack, R lookahead, K counted items
# per pack at most


@njit(nogil=True, cache=True)
def requeue(lengths, counts, gone, oldest, entered, left, head, tail, following, words, summary, number):  # type: ignore[no-untyped-def]
    """Queue those waiting items that count for at most `left`, in order of arrival, and no others.

    Returns the number of queued items, their tokens, their largest count, and the most items of one length.

    The queues are those of `_length_bitmap.py`; `number` (L + 1,) is the number of items in each, or None.
    """
    for i in range(oldest, entered):
        if not gone[i]:
            head[lengths[i]] = -1
            clear_bit(words, summary, lengths[i])
            if number is not None:
                number[lengths[i]] = 0
    waiting, tokens, heaviest, peak = np.int64(0), np.int64(0), np.int64(0), np.int64(0)
    for i in range(oldest, entered):
        if gone[i] or counts[i] > left:
            continue
        length = lengths[i]
        following[i] = -1
        if head[length] < 0:
            head[length] = i
            set_bit(words, summary, length)
        else:
            following[tail[length]] = i
        tail[length] = i
        waiting += 1
        tokens += length
        heaviest = max(heaviest, counts[i])
        if number is not None:
            number[length] += 1
            peak = max(peak, number[length])
    return waiting, tokens, heaviest, peak


@njit(nogil=True, cache=True)
def most_items(counts, gone, oldest, entered, left):  # type: ignore[no-untyped-def]
    """How many waiting items the pack could take by their counts: `left` over the smallest count."""
    lightest = left
    for i in range(oldest, entered):
        if not gone[i]:
            lightest = min(lightest, counts[i])
    return left // lightest


@njit(nogil=True, cache=True)
def best_fit_decreasing(lengths, counts, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.best_fit_decreasing`.

    Packs with equal room form a stack, the one changed last on top. Unlike `_decreasing.best_fit_decreasing`, which
    moves runs of equal items, this moves single items.
    """
    n = len(lengths)
    block = min(n, 4 * lookahead)
    starts = np.empty(capacity + 1, np.int64)
    items, where = np.empty(block, np.int64), np.empty(block, np.int64)
    top, words = np.full(capacity + 1, -1, np.int64), np.zeros((capacity >> 6) + 1, np.uint64)
    below, held = np.empty(block, np.int64), np.empty(block, np.int64)
    packs, start = 0, 0
    while start < n and (flush or n - start >= 4 * lookahead):
        end = min(n, start + block)
        longest_first(lengths, start, end, starts, items)
        opened = 0
        for j in range(end - start):
            length, count = lengths[items[j]], counts[items[j]]
            room, pack, before = least_room(words, length), -1, -1
            while room >= 0:
                pack, before = top[room], -1
                while pack >= 0 and held[pack] + count > max_items:
                    before, pack = pack, below[pack]
                if pack >= 0:
                    break
                room = least_room(words, room + 1)  # below the capacity, so `room + 1` is within the words
            if pack < 0:
                pack, room = opened, np.int64(capacity)
                held[pack] = 0
                opened += 1
            elif before >= 0:
                below[before] = below[pack]
            else:
                top[room] = below[pack]
                if top[room] < 0:
                    words[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
            where[j] = pack
            held[pack] += count
            rest = room - length
            if rest > 0 and held[pack] < max_items:
                below[pack] = top[rest]
                top[rest] = pack
                words[rest >> 6] |= np.uint64(1) << np.uint64(rest & 63)
        packs = emit_block(items[: end - start], where, opened, order, offsets, packs)
        top[:] = -1
        words[:] = 0
        start = end
    return packs
