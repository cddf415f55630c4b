"""Compiled `largest_fit`: a pack starts with the oldest waiting item and takes the largest that fits.

It takes the arguments of the packers in `_classical.py`, and two more: `least` (n,), the length each item may be cut
to, and `widest`, the largest cut of any item. With `widest` 0 no item is cut and `least` is not read. `reference.py`
defines the packer in plain Python.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._counted import requeue
from patchnpack.packer.binpacking.packers._length_bitmap import clear_bit, highest, longer, set_bit

# n items (images), each of a length (tokens); L capacity of a pack, R lookahead, K items per pack at most


@njit(nogil=True, cache=True)
def largest_fit(lengths, counts, capacity, max_items, lookahead, flush, order, offsets, least, widest):  # type: ignore[no-untyped-def]
    """See `reference.largest_fit`."""
    n = len(lengths)
    head = np.full(capacity + 1, -1, np.int64)
    tail = np.full(capacity + 1, -1, np.int64)
    following = np.full(n, -1, np.int64)
    gone = np.zeros(n, np.bool_)
    words = np.zeros((capacity >> 6) + 1, np.uint64)
    summary = np.zeros((capacity >> 12) + 1, np.uint64)
    packs, out, entered, waiting, oldest = 0, 0, 0, 0, 0
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
            entered += 1
            waiting += 1
        if waiting == 0 or (waiting < lookahead and not flush):
            return packs
        while gone[oldest]:
            oldest += 1
        length, room, left, slack = np.int64(lengths[oldest]), capacity, np.int64(max_items), np.int64(0)
        while length > 0:
            item = head[length]
            head[length] = following[item]
            if head[length] < 0:
                clear_bit(words, summary, length)
            gone[item] = True
            order[out] = item
            out += 1
            waiting -= 1
            room -= length
            left -= 1 if counts is None else counts[item]
            if left == 0 or waiting == 0 or room <= 0:
                break
            if counts is not None and left < heaviest:
                queues = (head, tail, following, words, summary)
                waiting, _, heaviest, _ = requeue(lengths, counts, gone, oldest, entered, left, *queues, None)
                aside = True
                if waiting == 0:
                    break
            if widest > 0:
                slack += length - least[item]
            length = highest(words, summary, room)
            if length < 0 and widest > 0:
                length = longer(words, head, least, room, slack, widest)
        packs += 1
        offsets[packs] = out
        if counts is not None and aside:
            queues = (head, tail, following, words, summary)
            waiting, _, heaviest, _ = requeue(lengths, counts, gone, oldest, entered, max_items, *queues, None)
            aside = False
