"""Compiled search in a bitmap of the lengths that are waiting: one bit per length, and a summary of its words."""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._bits import leading_zeros, trailing_zeros


@njit(nogil=True, cache=True)
def highest(words, summary, limit):  # type: ignore[no-untyped-def]
    """The highest set bit of `words` at or below `limit`, or -1.

    `summary` has one bit per nonzero word.
    """
    w = limit >> 6
    word = words[w] & (np.uint64(0xFFFFFFFFFFFFFFFF) >> np.uint64(63 - (limit & 63)))
    if word != 0:
        return (w << 6) + 63 - np.int64(leading_zeros(word))
    s = w >> 6
    above = summary[s] & ((np.uint64(1) << np.uint64(w & 63)) - np.uint64(1))
    while above == 0:
        s -= 1
        if s < 0:
            return -1
        above = summary[s]
    w = (s << 6) + 63 - np.int64(leading_zeros(above))
    return (w << 6) + 63 - np.int64(leading_zeros(words[w]))


@njit(nogil=True, cache=True)
def longer(words, head, least, room, slack, widest):  # type: ignore[no-untyped-def]
    """The length of the item that `reference.closing_over` returns, or -1."""
    longest = room + min(room, slack + widest)
    w, above = (room + 1) >> 6, np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64((room + 1) & 63)
    while w < len(words):
        word = words[w] & above
        if word == 0:
            w, above = w + 1, np.uint64(0xFFFFFFFFFFFFFFFF)
            continue
        length = (w << 6) + np.int64(trailing_zeros(word))
        if length > longest:
            break
        if least[head[length]] - room <= slack:
            return length
        above = word & (word - np.uint64(1))
    return np.int64(-1)


# Waiting items stand in one queue per length, oldest first (head, tail, following). A bitmap marks the lengths whose
# queue is not empty (words, summary), so that a bit scan finds the largest item that fits, and the oldest waiting item
# is always the head of its queue. Entering and leaving a queue is written out at each use: numba counts references to
# each array argument of a call, and as functions these steps took three quarters of the time.


@njit(nogil=True, cache=True, inline="always")
def set_bit(words, summary, length):  # type: ignore[no-untyped-def]
    words[length >> 6] |= np.uint64(1) << np.uint64(length & 63)
    summary[length >> 12] |= np.uint64(1) << np.uint64((length >> 6) & 63)


@njit(nogil=True, cache=True, inline="always")
def clear_bit(words, summary, length):  # type: ignore[no-untyped-def]
    words[length >> 6] &= ~(np.uint64(1) << np.uint64(length & 63))
    if words[length >> 6] == 0:
        summary[length >> 12] &= ~(np.uint64(1) << np.uint64((length >> 6) & 63))
