"""The compiled packers that sort blocks of 4R items.

These are `first_fit_decreasing` and `best_fit_decreasing`.

They take the arguments of the packers in `_classical.py`. `reference.py` defines each in plain Python. With counts,
`_counted.best_fit_decreasing` takes the place of the one here.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from patchnpack.packer.binpacking.packers._bits import trailing_zeros

# n items (images), each of a length (tokens); L capacity of a pack, R lookahead, K items per pack at most


@njit(nogil=True, cache=True)
def longest_first(lengths, start, end, starts, items):  # type: ignore[no-untyped-def]
    """Write the items from `start` to `end` to `items`, longest first; equal lengths stay in order."""
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
def emit_block(items, where, opened, order, offsets, packs):  # type: ignore[no-untyped-def]
    """Write a block's packs in the order of opening; item `items[j]` is in pack `where[j]`."""
    for p in range(opened):
        offsets[packs + p + 1] = 0
    for j in range(len(items)):
        offsets[packs + where[j] + 1] += 1
    out = offsets[packs]
    for p in range(opened):  # each entry becomes its pack's start; writing its items moves it to the pack's end
        offsets[packs + p + 1], out = out, out + offsets[packs + p + 1]
    for j in range(len(items)):
        p = packs + where[j] + 1
        order[offsets[p]] = items[j]
        offsets[p] += 1
    return packs + opened


@njit(nogil=True, cache=True)
def _first_fitting(tree, free, leaves, length, count):  # type: ignore[no-untyped-def]
    """The leaf of the first pack with room for `length` and `count`; there is always one, not opened yet."""
    node = 1
    while True:
        if tree[node] >= length and free[node] >= count:
            if node >= leaves:
                return node
            node *= 2
        else:
            while node & 1:
                node >>= 1
            node += 1


@njit(nogil=True, cache=True)
def _take_count(free, node, count):  # type: ignore[no-untyped-def]
    """Take `count` from a leaf of the max-tree of what packs have left; returns what the leaf has left."""
    left = free[node] - count
    free[node] = left
    while node > 1:
        node //= 2
        most = max(free[2 * node], free[2 * node + 1])
        if free[node] == most:
            break
        free[node] = most
    return left


@njit(nogil=True, cache=True)
def first_fit_decreasing(lengths, counts, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.first_fit_decreasing`.

    A max-tree over the packs' rooms finds the first pack that fits; with counts, so does one of what they have left.
    """
    n = len(lengths)
    block = min(n, 4 * lookahead)
    starts = np.empty(capacity + 1, np.int64)
    items, where = np.empty(block, np.int64), np.empty(block, np.int64)
    leaves = 1
    while leaves < block:
        leaves *= 2
    tree = np.empty(2 * leaves, np.int64)
    free = np.empty(2 * leaves if counts is not None else 0, np.int64)
    count = np.empty(block, np.int64)
    packs, start = 0, 0
    while start < n and (flush or n - start >= 4 * lookahead):
        end = min(n, start + block)
        longest_first(lengths, start, end, starts, items)
        tree[:] = capacity
        free[:] = max_items
        count[:] = 0
        opened = 0
        for j in range(end - start):
            length = lengths[items[j]]
            if counts is None:
                node = 1
                while node < leaves:
                    node *= 2
                    if tree[node] < length:
                        node += 1
            else:
                node = _first_fitting(tree, free, leaves, length, counts[items[j]])
            pack = node - leaves
            where[j] = pack
            opened = max(opened, pack + 1)
            if counts is None:
                count[pack] += 1
                tree[node] = tree[node] - length if count[pack] < max_items else 0
            else:
                tree[node] = tree[node] - length if _take_count(free, node, counts[items[j]]) > 0 else 0
            while node > 1:
                node //= 2
                room = max(tree[2 * node], tree[2 * node + 1])
                if tree[node] == room:
                    break
                tree[node] = room
        packs = emit_block(items[: end - start], where, opened, order, offsets, packs)
        start = end
    return packs


@njit(nogil=True, cache=True)
def _sort_runs(lengths, start, size, ends, items):  # type: ignore[no-untyped-def]
    """Write the offsets of `size` items from `start` to `items`, longest first.

    Items of equal length stay in order.

    `ends[length]` becomes the end of the run of that length in `items`. Returns the largest length.
    """
    ends[:] = 0
    for i in range(start, start + size):
        ends[lengths[i]] += 1
    before, longest = 0, 0
    for length in range(len(ends) - 1, 0, -1):
        if ends[length] > 0:
            longest = max(longest, length)
        before, ends[length] = before + ends[length], before
    for i in range(size):
        length = lengths[start + i]
        items[ends[length]] = i
        ends[length] += 1
    return longest


# Best fit decreasing moves runs of items, not single items. Items of equal length differ only in age, so packs that
# hold the same lengths stay together as a group of consecutively numbered packs. A run of items is dealt to the packs
# of a group, the last changed pack first: from one end of the group to the other, and the next run in the opposite
# direction. Groups with the same room form a stack. Each run links to the previous run in the same packs; at the end
# every pack is written by following these links, so that memory is read and written in order.


@njit(nogil=True, cache=True, inline="always")
def least_room(words, length):  # type: ignore[no-untyped-def]
    """The least room that holds `length`, or -1.

    That is the lowest set bit of `words` at or above `length`.
    """
    w = length >> 6
    word = words[w] & (np.uint64(0xFFFFFFFFFFFFFFFF) << np.uint64(length & 63))
    while word == 0 and w + 1 < len(words):
        w += 1
        word = words[w]
    return (w << 6) + np.int64(trailing_zeros(word)) if word != 0 else np.int64(-1)


@njit(nogil=True, cache=True, inline="always")
def _leave_group(first, last, group, some, step):  # type: ignore[no-untyped-def]
    """Take `some` packs out of a group, at the end that changed last; return the lowest."""
    if step > 0:
        first[group] += some
        return np.int64(first[group]) - some
    last[group] -= some
    return np.int64(last[group])


@njit(nogil=True, cache=True)
def _write_runs(groups, runs, items, start, path, opened, order, offsets, packs):  # type: ignore[no-untyped-def]
    """Write a block's packs.

    Each pack's items are found by following the runs of its group, the oldest run first.
    """
    group_of, first, last = groups
    run_before, run_item, run_each, run_pack, run_step = runs
    out, pack = offsets[packs], 0
    while pack < opened:
        g = group_of[pack]
        depth, run = 0, g
        while run >= 0:
            path[depth] = run
            depth += 1
            run = run_before[run]
        for pack in range(first[g], last[g]):
            for d in range(depth - 1, -1, -1):
                run = path[d]
                at = run_item[run] + (pack - run_pack[run]) * run_step[run] * run_each[run]
                for i in range(at, at + run_each[run]):
                    order[out] = start + items[i]
                    out += 1
            packs += 1
            offsets[packs] = out
        pack = last[g]
    return packs


@njit(nogil=True, cache=True)
def best_fit_decreasing(lengths, counts, capacity, max_items, lookahead, flush, order, offsets):  # type: ignore[no-untyped-def]
    """See `reference.best_fit_decreasing`."""
    n = len(lengths)
    block = min(n, 4 * lookahead)
    starts = np.empty(capacity + 1, np.int64)
    items = np.empty(block, np.int32)
    # A run: the previous run, its first item, items per pack, the first pack that it visits, and the step to the next.
    run_before, run_item = np.empty(2 * block, np.int32), np.empty(2 * block, np.int32)
    run_each, run_pack = np.empty(2 * block, np.int32), np.empty(2 * block, np.int32)
    run_step = np.empty(2 * block, np.int8)
    # A group has the number of the run that made it: its packs, items per pack, and the group below it in the stack.
    first, last = np.empty(2 * block, np.int32), np.empty(2 * block, np.int32)
    held, below = np.empty(2 * block, np.int32), np.empty(2 * block, np.int32)
    top = np.full(capacity + 1, -1, np.int32)
    words = np.zeros((capacity >> 6) + 1, np.uint64)
    group_of = np.empty(block, np.int32)  # by the first pack of the group
    path = np.empty(min(max_items, block) + 1, np.int32)
    groups_at, runs = (group_of, first, last), (run_before, run_item, run_each, run_pack, run_step)
    packs, start = 0, 0
    while start < n and (flush or n - start >= 4 * lookahead):
        size = min(n - start, block)
        longest = _sort_runs(lengths, start, size, starts, items)
        opened, groups, item = 0, 0, 0
        for length in range(longest, 0, -1):
            left = starts[length] - item
            while left > 0:
                room = least_room(words, length)
                if room < 0:  # no open pack has room: open new ones
                    old, room, before, count, step = -1, np.int64(capacity), -1, 0, 1
                    each = min(room // length, max_items)
                    some = (left + each - 1) // each
                    lowest, highest = opened, opened + some
                    opened += some
                else:
                    old = top[room]
                    before, count, step = old, held[old], -run_step[old]
                    each = min(room // length, np.int64(max_items - count))
                    some = min((left + each - 1) // each, np.int64(last[old] - first[old]))
                    lowest = _leave_group(first, last, old, some, step)
                    highest = lowest + some
                    if first[old] == last[old]:
                        top[room] = below[old]
                        if top[room] < 0:
                            words[room >> 6] &= ~(np.uint64(1) << np.uint64(room & 63))
                    else:
                        group_of[first[old]] = old
                # Each of these packs takes `each` items; the last may take fewer.
                full = min(left // each, some)
                for part in range(2):
                    number, number_each = (full, each) if part == 0 else (some - full, left)
                    if number == 0:
                        continue
                    g = groups
                    groups += 1
                    run_before[g], run_item[g], run_each[g], run_step[g] = before, item, number_each, step
                    if step > 0:
                        first[g], last[g] = lowest, lowest + number
                        run_pack[g] = lowest
                        lowest += number
                    else:
                        first[g], last[g] = highest - number, highest
                        run_pack[g] = highest - 1
                        highest -= number
                    held[g] = count + number_each
                    group_of[first[g]] = g
                    rest = room - number_each * length
                    if rest > 0 and held[g] < max_items:
                        below[g] = top[rest]
                        top[rest] = g
                        words[rest >> 6] |= np.uint64(1) << np.uint64(rest & 63)
                    item += number * number_each
                    left -= number * number_each
        packs = _write_runs(groups_at, runs, items, start, path, opened, order, offsets, packs)
        top[:] = -1
        words[:] = 0
        start += size
    return packs
