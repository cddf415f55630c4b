"""Packing with every item in view: by the patterns of the cutting-stock programme."""

from __future__ import annotations

import math

import numpy as np

from patchnpack.packer.binpacking import _patterns
from patchnpack.packer.binpacking.packers import _counted, _decreasing, _subset_sum
from patchnpack.packer.binpacking.pricing import _cutting_stock
from patchnpack.packer.binpacking.pricing.cutting_stock import solve_cutting_stock

# n items, counts (L + 1,) of each length; L capacity, K items per pack at most

_GROUPS = 384
_ROUNDS = 100  # of column generation
_SHARE = 0.7  # of the packs that a programme over rounded lengths plans are made; the next one plans the rest
_PATIENCE = 3  # programmes without a gain
_LOOKAHEAD = 1024
_FEW = 200_000  # items that subset_sum always packs, too


def pack_by_patterns(
    lengths: np.ndarray, capacity: int, max_items: int, counts: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pack all items: nearly as few packs as any packing needs, and never more than `best_fit_decreasing`.

    The linear programme of `cutting_stock.py` says how many packs should follow each pattern, in fractions. Each round
    makes the whole ones and solves the programme again for the items left. A classical algorithm packs the rest after
    the round that gives the fewest packs in all. Past 384 distinct lengths, the programme rounds lengths up to the
    longest of a group of neighbours. A pack then has room for items a little longer than planned, and takes them. This
    leaves shorter ones to the packs planned for the longer, so a round makes only 70 % of the packs.

        lengths 6 5 5 4 4 3 3, capacity 10        programme: 6+4 once, 5+5 once, 4+3+3 once

    Time hardly depends on the number of items: up to three seconds for the programmes, then 5 million items per second.
    The programme does not know `max_items`; packs obey it. Where `max_items` rather than `capacity` limits packs, the
    classical algorithms pack all. The programme ignores `counts` as well: a classical algorithm repacks the items of
    packs that count for more than `max_items`.

    Args:
        lengths: int64 (n,), each from 1 to `capacity`.
        capacity: L, token slots per pack.
        max_items: K, maximum items per pack, each counted as `counts` says.
        counts: int64 (n,), how many items each counts for, from 1 to `max_items`; None is 1 each.

    Returns:
        `order` and `offsets`, int64, as `pack_lengths` returns them. Packs are in the order of their oldest items.

    >>> lengths = np.array([6, 5, 5, 4, 4, 3, 3])
    >>> order, offsets = pack_by_patterns(lengths, 10, max_items=64)
    >>> [lengths[order[a:b]].tolist() for a, b in zip(offsets, offsets[1:])]
    [[6, 4], [5, 5], [4, 3, 3]]
    """
    lengths = np.ascontiguousarray(lengths, np.int64)
    if counts is not None and (counts > 1).any():
        return _counted_packs(lengths, counts, capacity, max_items)
    n, made = len(lengths), 0
    by_length, by_items = -(-int(lengths.sum()) // capacity), -(-n // max_items)
    least = max(by_length, by_items)
    number = np.bincount(lengths, minlength=capacity + 1).astype(np.int64)
    chosen, ends = np.empty(n, np.int64), np.zeros(n + 1, np.int64)
    rest, rest_ends = _classical(lengths, capacity, max_items)
    fewest, kept = len(rest_ends) - 1, 0  # packs in all, of which the first ones are by patterns
    vain = 0 if by_length >= by_items else _PATIENCE  # else K limits packs, which the programme does not know
    while fewest > least and ends[made] < n and vain < _PATIENCE:
        before, vain = made, vain + 1
        made, needed = _fill_round(number, max_items, chosen, ends, made)
        if made == before:
            break
        left, left_ends = _classical(np.repeat(np.arange(capacity + 1), number), capacity, max_items)
        if made + len(left_ends) - 1 < fewest:
            rest, rest_ends, fewest, kept = left, left_ends, made + len(left_ends) - 1, made
            vain = 0
        if len(left_ends) - 1 < needed - (made - before) + 0.99:
            break  # no packing of the items left needs fewer packs
    start = ends[kept]
    chosen[start:] = rest
    ends[kept : fewest + 1] = start + rest_ends
    order, offsets = np.empty(n, np.int64), np.zeros(fewest + 1, np.int64)
    _patterns.take_items(lengths, capacity, chosen, ends[: fewest + 1], order, offsets)
    return order, offsets


def _counted_packs(
    lengths: np.ndarray, counts: np.ndarray, capacity: int, max_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """`pack_by_patterns` for items that count for several."""
    order, offsets = pack_by_patterns(lengths, capacity, max_items // int(counts.min()))
    pack_of, sizes = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets)), np.diff(offsets)
    fits = np.bincount(pack_of, counts[order], minlength=len(sizes)) <= max_items
    if fits.all():
        return order, offsets
    again = np.sort(order[~fits[pack_of]])
    rest, rest_offsets = _classical_packs(lengths[again], counts[again], capacity, max_items)
    order = np.concatenate([order[fits[pack_of]], again[rest]])
    sizes = np.concatenate([sizes[fits], np.diff(rest_offsets)])
    others, others_offsets = _classical_packs(lengths, counts, capacity, max_items)
    if len(others_offsets) - 1 < len(sizes):
        order, sizes = others, np.diff(others_offsets)
    # Items within packs are in order of arrival, as are the packs by their oldest items.
    oldest = np.minimum.reduceat(order, np.cumsum(sizes) - sizes)
    order = order[np.lexsort((order, np.repeat(oldest, sizes)))]
    return order, np.concatenate([[0], np.cumsum(sizes[np.argsort(oldest)])]).astype(np.int64)


def _classical(lengths: np.ndarray, capacity: int, max_items: int) -> tuple[np.ndarray, np.ndarray]:
    """`_classical_packs` as the packs' lengths (n,) and where each pack ends, from 0."""
    order, offsets = _classical_packs(lengths, None, capacity, max_items)
    return lengths[order], offsets


def _classical_packs(
    lengths: np.ndarray, counts: np.ndarray | None, capacity: int, max_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Pack by a classical algorithm; returns `order` and `offsets`.

    `best_fit_decreasing`, or `subset_sum` if that needs fewer packs. The latter takes a microsecond per item, so it
    packs many items only where K, which suits it better, keeps packs from being full.
    """
    n = len(lengths)
    order, offsets = np.empty(n, np.int64), np.zeros(n + 1, np.int64)
    decreasing = _decreasing.best_fit_decreasing if counts is None else _counted.best_fit_decreasing
    packs = decreasing(lengths, counts, capacity, max_items, max(1, n), True, order, offsets)
    best = order, offsets[: packs + 1]
    items = n if counts is None else int(counts.sum())
    if n <= _FEW or 2 * items * capacity > max_items * int(lengths.sum()):
        order, offsets = np.empty(n, np.int64), np.zeros(n + 1, np.int64)
        limits = capacity, max_items, _LOOKAHEAD, True
        fewer = _subset_sum.subset_sum(lengths, counts, *limits, order, offsets, lengths, 0)
        if fewer < packs:
            best = order, offsets[: fewer + 1]
    return best


def _groups(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shortest and the longest length of each group, and its items: groups lose fewest tokens by rounding up."""
    distinct = np.flatnonzero(counts)
    number = counts[distinct]
    if len(distinct) <= _GROUPS:
        return distinct, distinct, number
    mirrored = len(counts) - distinct[::-1]
    firsts = _cutting_stock.group_starts(mirrored, number[::-1].copy(), _GROUPS)
    lasts = len(distinct) - 1 - firsts[::-1]
    starts = np.concatenate([[0], lasts[:-1] + 1])
    return distinct[starts], distinct[lasts], np.add.reduceat(number, starts)


def _fill_round(
    counts: np.ndarray, max_items: int, chosen: np.ndarray, ends: np.ndarray, made: int
) -> tuple[int, float]:
    """Solve the programme for the items left and fill packs by its patterns, the most frequent first.

    Returns the packs made so far, and the packs that the programme needs: 0 where lengths were rounded up, because
    the items may need fewer then. Leaves out patterns of more than K items.
    """
    shortest, longest, number = _groups(counts)
    solved = solve_cutting_stock(longest, number, len(counts) - 1, rounds=_ROUNDS)
    exact = len(shortest) == np.count_nonzero(counts)
    needed = math.fsum(solved.packs.tolist())
    packs = np.floor(solved.packs * (1 if exact else _SHARE) + 1e-6).astype(np.int64)
    if packs.sum() < needed / 5:
        packs = np.floor(solved.packs + 0.5).astype(np.int64)
    if not packs.any():
        packs[solved.packs.argmax()] = 1
    items = np.add.reduceat(solved.copies, solved.starts[:-1])
    packs[items > max_items] = 0
    rank = np.empty(len(packs), np.int64)
    frequent = np.argsort(-solved.packs, kind="stable")
    rank[frequent] = np.arange(len(packs))
    sizes = np.diff(solved.starts)
    at = np.lexsort((-solved.indices, np.repeat(rank, sizes)))  # within each pattern, the longest first
    starts = np.concatenate([[0], np.cumsum(sizes[frequent])])
    made = _patterns.fill_patterns(
        *(counts, shortest, longest, starts, solved.indices[at], solved.copies[at], packs[frequent]),
        *(max_items, chosen, ends, made),
    )
    return int(made), needed if exact else 0.0
