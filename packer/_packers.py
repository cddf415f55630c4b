"""The compiled classical packers: which items go into which pack. `reference.py` says in plain Python what each does.

All take `lengths` int64 (n,), `capacity`, `max_items`, `lookahead` and `flush`, write item numbers to `order` (n,) and
ends of packs to `offsets` (n + 1,), and return the number of packs. No memory is allocated an item.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

# n items (images) of a given length (tokens), L capacity of a pack, R lookahead, K items in a pack at most


@intrinsic
def _trailing_zeros(typingctx: Any, word: Any) -> Any:
    """Zero bits below the lowest set bit of a uint64; 64 for 0."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 0))

    return types.uint64(types.uint64), codegen


@njit(nogil=True, cache=True)
def next_fit(lengths, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.next_fit`. Returns the number of packs written to `order` and `offsets`."""
    packs, used, start = 0, 0, 0
    for i in range(len(lengths)):
        if used + lengths[i] > capacity or i - start == max_items:
            packs += 1
            offsets[packs] = i
            start, used = i, 0
        used += lengths[i]
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
def _fit(lengths, capacity, max_items, lookahead, flush, order, offsets, best):  # type: ignore[no-untyped-def]
    n = len(lengths)
    following = np.full(n, -1, np.int64)  # the next item of the same pack
    # The open packs, oldest first; at most one an item held, and the one just opened.
    most = min(lookahead, n) + 1
    room = np.empty(most, np.int64)
    count = np.empty(most, np.int64)
    first = np.empty(most, np.int64)
    last = np.empty(most, np.int64)
    packs, opened, held = 0, 0, 0
    for i in range(n):
        p, least = opened, capacity + 1
        for q in range(opened):
            if lengths[i] <= room[q] < least:
                p, least = q, room[q]
                if not best:
                    break
        if p == opened:
            room[p], count[p], first[p] = capacity, 0, i
            opened += 1
        else:
            following[last[p]] = i
        last[p] = i
        room[p] -= lengths[i]
        count[p] += 1
        held += 1
        if room[p] > 0 and count[p] < max_items:
            if held < lookahead:
                continue
            p = 0
        packs = _emit(p, first, following, order, offsets, packs)
        held -= count[p]
        opened -= 1
        for q in range(p, opened):
            room[q], count[q], first[q], last[q] = room[q + 1], count[q + 1], first[q + 1], last[q + 1]
    if flush:
        for p in range(opened):
            packs = _emit(p, first, following, order, offsets, packs)
    return packs


@njit(nogil=True, cache=True)
def first_fit(lengths, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.first_fit`."""
    return _fit(lengths, capacity, max_items, lookahead, flush, order, offsets, False)


@njit(nogil=True, cache=True)
def best_fit(lengths, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.best_fit`."""
    return _fit(lengths, capacity, max_items, lookahead, flush, order, offsets, True)


@njit(nogil=True, cache=True)
def _longest_first(lengths, start, end, starts, items):  # type: ignore[no-untyped-def]
    """Writes the items from `start` to `end` to `items`, longest first, of one length the oldest first."""
    starts[:] = 0
    longest = 0
    for i in range(start, end):
        starts[lengths[i]] += 1
        longest = max(longest, lengths[i])
    before = 0
    for length in range(longest, 0, -1):
        before, starts[length] = before + starts[length], before
    for i in range(start, end):
        items[starts[lengths[i]]] = i
        starts[lengths[i]] += 1


@njit(nogil=True, cache=True)
def _emit_block(items, where, opened, order, offsets, packs):  # type: ignore[no-untyped-def]
    """Emits a block's packs in the order in which they were opened; item `items[j]` lies in pack `where[j]`."""
    for p in range(opened):
        offsets[packs + p + 1] = 0
    for j in range(len(items)):
        offsets[packs + where[j] + 1] += 1
    out = offsets[packs]
    for p in range(opened):  # each entry becomes its pack's start, and its end once its items are written
        offsets[packs + p + 1], out = out, out + offsets[packs + p + 1]
    for j in range(len(items)):
        p = packs + where[j] + 1
        order[offsets[p]] = items[j]
        offsets[p] += 1
    return packs + opened


@njit(nogil=True, cache=True)
def first_fit_decreasing(lengths, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.first_fit_decreasing`. A tree of maxima over the packs' rooms finds the first that fits."""
    n = len(lengths)
    block = min(n, 4 * lookahead)
    starts = np.empty(capacity + 1, np.int64)
    items, where = np.empty(block, np.int64), np.empty(block, np.int64)
    leaves = 1
    while leaves < block:
        leaves *= 2
    tree = np.empty(2 * leaves, np.int64)
    count = np.empty(block, np.int64)
    packs, start = 0, 0
    while start < n and (flush or n - start >= 4 * lookahead):
        end = min(n, start + block)
        _longest_first(lengths, start, end, starts, items)
        tree[:] = capacity
        count[:] = 0
        opened = 0
        for j in range(end - start):
            length = lengths[items[j]]
            node = 1
            while node < leaves:
                node *= 2
                if tree[node] < length:
                    node += 1
            pack = node - leaves
            where[j] = pack
            opened = max(opened, pack + 1)
            count[pack] += 1
            tree[node] = tree[node] - length if count[pack] < max_items else 0
            while node > 1:
                node //= 2
                room = max(tree[2 * node], tree[2 * node + 1])
                if tree[node] == room:
                    break
                tree[node] = room
        packs = _emit_block(items[: end - start], where, opened, order, offsets, packs)
        start = end
    return packs


@njit(nogil=True, cache=True)
def best_fit_decreasing(lengths, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.best_fit_decreasing`. Packs stand in stacks by room, with a bitmap over the rooms."""
    n = len(lengths)
    block = min(n, 4 * lookahead)
    starts = np.empty(capacity + 1, np.int64)
    items, where = np.empty(block, np.int64), np.empty(block, np.int64)
    top = np.full(capacity + 1, -1, np.int64)
    below = np.empty(block, np.int64)
    count = np.empty(block, np.int64)
    words = np.zeros((capacity >> 6) + 1, np.uint64)
    packs, start = 0, 0
    while start < n and (flush or n - start >= 4 * lookahead):
        end = min(n, start + block)
        _longest_first(lengths, start, end, starts, items)
        opened, j = 0, 0
        while j < end - start:
            length = lengths[items[j]]
            # The least room of at least `length`.
            w = length >> 6
            word = words[w] & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(length & 63))
            while word == 0 and w + 1 < len(words):
                w += 1
                word = words[w]
            if word == 0:
                pack, room = opened, capacity
                count[pack] = 0
                opened += 1
            else:
                room = (w << 6) + np.int64(_trailing_zeros(word))
                pack = top[room]
                top[room] = below[pack]
                if top[room] < 0:
                    words[w] &= ~(np.uint64(1) << np.uint64(room & 63))
            # The next item, if it is as long and fits, fits best here: no other pack has less room that will do.
            while True:
                where[j] = pack
                room -= length
                count[pack] += 1
                j += 1
                if j == end - start or lengths[items[j]] != length or room < length or count[pack] == max_items:
                    break
            if room > 0 and count[pack] < max_items:
                below[pack] = top[room]
                top[room] = pack
                words[room >> 6] |= np.uint64(1) << np.uint64(room & 63)
        packs = _emit_block(items[: end - start], where, opened, order, offsets, packs)
        top[:] = -1
        words[:] = 0
        start = end
    return packs
