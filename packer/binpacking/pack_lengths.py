"""`pack_lengths`: assign items to packs by their lengths. Integers in, integers out."""

from __future__ import annotations

from typing import get_args

import numpy as np
from numpy.typing import ArrayLike

from patchnpack.packer.binpacking.algorithms import CHOICES, DECREASING, Algorithm
from patchnpack.packer.binpacking.packers import (
    _classical,
    _counted,
    _decreasing,
    _largest_fit,
    _priced,
    _subset_sum,
)
from patchnpack.packer.binpacking.patterns import pack_by_patterns
from patchnpack.packer.binpacking.pricing.prices import Prices, price_table
from patchnpack.packer.checks import check_whole

SAMPLE = 16_384  # lengths that decide "auto", unless the lookahead is large

_PACKERS = {
    "next_fit": _classical.next_fit,
    "first_fit": _classical.first_fit,
    "best_fit": _classical.best_fit,
    "first_fit_decreasing": _decreasing.first_fit_decreasing,
    "best_fit_decreasing": _decreasing.best_fit_decreasing,
}
_WAITING = {
    "largest_fit": _largest_fit.largest_fit,
    "subset_sum": _subset_sum.subset_sum,
}


def sample_size(lookahead: int) -> int:
    """Return the number of lengths that decide "auto".

    Differences between algorithms of 0.05 points show, and the last R items, which are packed without later ones, count
    little. At the slowest, packing them takes a quarter of a second.
    """
    return min(max(SAMPLE, 64 * lookahead), 1 << 18)


def check_algorithm(algorithm: str) -> None:
    """Raise ValueError if there is no algorithm of this name."""
    if algorithm not in get_args(Algorithm):
        names = ", ".join(map(repr, get_args(Algorithm)))
        raise ValueError(f"algorithm is {algorithm!r}; it must be one of {names}")


def is_undecided(algorithm: Algorithm, prices: object) -> bool:
    """Return whether lengths must be known before items can be packed: to resolve "auto", or to price lengths."""
    return algorithm == "auto" or (algorithm == "priced" and prices is None)


def resolve_algorithm(
    algorithm: Algorithm,
    lengths: np.ndarray,
    capacity: int,
    *,
    max_items: int,
    lookahead: int,
    prices: Prices | None = None,
    counts: np.ndarray | None = None,
) -> tuple[Algorithm, Prices | None]:
    """Resolve "auto", and price the lengths for "priced"; other algorithms are returned as they are.

    "auto" chooses the one of `CHOICES` that packs the first lengths (see `sample_size`) into the fewest packs.

    Args:
        algorithm: the algorithm that is asked for.
        lengths: int64 (n,), each from 1 to `capacity`.
        capacity, max_items, lookahead: as for `pack_lengths`.
        prices: prices of the lengths; None computes them from `lengths`.
        counts: as for `pack_lengths`, of the first lengths at least.

    Returns:
        The algorithm, and the prices if it is "priced".
    """
    check_algorithm(algorithm)
    if not is_undecided(algorithm, prices):
        return algorithm, prices
    if prices is None:
        prices = Prices.of_counts(np.bincount(lengths), capacity)
    if algorithm == "priced":
        return algorithm, prices
    sample = lengths[: sample_size(lookahead)]
    packs: dict[Algorithm, int] = {}
    for choice in CHOICES:
        _, offsets = pack_ready(
            sample,
            capacity,
            max_items=max_items,
            algorithm=choice,
            lookahead=lookahead,
            flush=True,
            prices=prices,
            counts=None if counts is None else counts[: len(sample)],
        )
        packs[choice] = len(offsets)
    chosen = min(CHOICES, key=lambda choice: packs[choice])
    return chosen, prices if chosen == "priced" else None


def check_lengths(lengths: ArrayLike, capacity: int, *, max_items: int, lookahead: int) -> np.ndarray:
    """Return the lengths as int64 (n,); raises ValueError for what `pack_lengths` refuses."""
    lengths = np.asarray(lengths)
    if lengths.ndim != 1:
        raise ValueError(f"lengths has shape {lengths.shape}; it must be one-dimensional")
    if len(lengths) and lengths.dtype.kind not in "iu":
        raise ValueError(f"lengths has dtype {lengths.dtype}; each length must be a whole number")
    lengths = np.ascontiguousarray(lengths, np.int64)
    for name, value in (("capacity", capacity), ("max_items", max_items), ("lookahead", lookahead)):
        check_whole(name, value)
    if len(lengths) and not 1 <= lengths.min() <= lengths.max() <= capacity:
        i = int(((lengths < 1) | (lengths > capacity)).argmax())
        raise ValueError(
            f"lengths[{i}] is {lengths[i]}; each length must be from 1 to the capacity, {capacity}: "
            "shrink the item or leave it out"
        )
    return lengths


def check_counts(counts: ArrayLike | None, items: int, max_items: int) -> np.ndarray | None:
    """Return the counts as int64 (n,), None where all are 1; raises ValueError for what `pack_lengths` refuses."""
    if counts is None:
        return None
    counts = np.asarray(counts)
    if counts.shape != (items,):
        raise ValueError(f"counts has shape {counts.shape}; it must have one count per length, ({items},)")
    if len(counts) and counts.dtype.kind not in "iu":
        raise ValueError(f"counts has dtype {counts.dtype}; each count must be a whole number")
    counts = np.ascontiguousarray(counts, np.int64)
    if len(counts) and not 1 <= counts.min() <= counts.max() <= max_items:
        i = int(((counts < 1) | (counts > max_items)).argmax())
        raise ValueError(
            f"counts[{i}] is {counts[i]}; each count must be from 1 to max_items, {max_items}: raise max_items, or "
            "leave the item out"
        )
    return None if (counts == 1).all() else counts


def pack_ready(
    lengths: ArrayLike,
    capacity: int,
    *,
    max_items: int,
    algorithm: Algorithm,
    lookahead: int,
    flush: bool,
    least: np.ndarray | None = None,
    prices: Prices | None = None,
    counts: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pack the items whose pack is final; with `flush`, all items as in `pack_lengths`.

    Without `flush`, items whose pack later arrivals could still change are left out.

    Pass the items left out first, in their order, to the next call, then the new arrivals: the packs are the same
    however the arrivals are split into calls. Each call resolves "auto" and prices the lengths again unless it is given
    `prices`, so do both first. With `least` (n,), the length that each item may be cut to, an item that is slightly too
    long may close a pack of "largest_fit", "subset_sum" and "priced".
    """
    lengths = check_lengths(lengths, capacity, max_items=max_items, lookahead=lookahead)
    counts = check_counts(counts, len(lengths), max_items)
    order = np.empty(len(lengths), np.int64)
    offsets = np.zeros(len(lengths) + 1, np.int64)
    check_algorithm(algorithm)
    if len(lengths):
        algorithm, prices = resolve_algorithm(
            algorithm, lengths, capacity, max_items=max_items, lookahead=lookahead, prices=prices, counts=counts
        )
    limits = (lengths, counts, capacity, max_items, lookahead, flush, order, offsets)
    if not len(lengths):
        packs = 0
    elif counts is not None and algorithm == "best_fit_decreasing":
        packs = _counted.best_fit_decreasing(*limits)
    elif algorithm in _PACKERS:
        packs = _PACKERS[algorithm](*limits)
    else:
        least = lengths if least is None else np.ascontiguousarray(least, np.int64)
        cuts = (least, int((lengths - least).max(initial=0)))
        if algorithm == "priced":
            assert prices is not None
            packs = _priced.priced(*limits, *cuts, *price_table(prices, capacity))
        else:
            packs = _WAITING[algorithm](*limits, *cuts)
    offsets = offsets[: packs + 1].copy()
    # Usually the whole array is used; a part is copied so that the whole is not kept alive.
    return order if offsets[-1] == len(order) else order[: offsets[-1]].copy(), offsets


def pack_lengths(
    lengths: ArrayLike,
    capacity: int,
    *,
    max_items: int = 64,
    algorithm: Algorithm = "auto",
    lookahead: int = 256,
    counts: ArrayLike | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Pack items of the given lengths, each whole and exactly once, into packs of at most `capacity`.

    Args:
        lengths: tokens of each item, (n,), each from 1 to `capacity`, in order of arrival.
        capacity: L, token slots per pack.
        max_items: K, maximum items per pack, each counted as `counts` says.
        algorithm: "next_fit", "first_fit", "best_fit", "first_fit_decreasing", "best_fit_decreasing", "largest_fit",
            "subset_sum", "priced", or "auto", which chooses one of the last three; `packers/reference.py` and
            `reference_priced.py` picture each.
        lookahead: R, number of waiting items that the packer chooses from; the decreasing algorithms sort all items.
            With at least as many as there are items, "auto" and "priced" look at all of them, and need hardly more
            packs than any packing; see `patterns.pack_by_patterns`.
        counts: how many items each counts for, (n,), from 1 to `max_items`, such as the images of a sample; None is 1
            each.

    Returns:
        `order` and `offsets`, int64: pack i holds the items `order[offsets[i]:offsets[i + 1]]`.

    Raises:
        ValueError: a length below 1 or above the capacity, a count below 1 or above `max_items`, or a parameter below
            1.

    >>> order, offsets = pack_lengths([3, 5, 6, 2, 4], 10, algorithm="largest_fit")
    >>> [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    [[0, 2], [1, 4], [3]]
    >>> order, offsets = pack_lengths([3, 5, 6, 2, 4], 10, max_items=4, algorithm="largest_fit", counts=[1, 3, 4, 1, 2])
    >>> [order[a:b].tolist() for a, b in zip(offsets, offsets[1:])]
    [[0, 1], [2], [3, 4]]
    """
    lengths = check_lengths(lengths, capacity, max_items=max_items, lookahead=lookahead)
    if algorithm in DECREASING:
        lookahead = max(1, len(lengths))
    if algorithm in ("auto", "priced") and lookahead >= len(lengths):
        return pack_by_patterns(lengths, capacity, max_items, check_counts(counts, len(lengths), max_items))
    return pack_ready(
        lengths, capacity, max_items=max_items, algorithm=algorithm, lookahead=lookahead, flush=True, counts=counts
    )
