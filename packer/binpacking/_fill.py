"""The compiled treatment of leftover slots.

`reference_fill.py` defines each function in plain Python.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# M images in N packs: pack p holds the images offsets[p] to offsets[p + 1]; sizes in pixels, grids in patches

PAD, CROP, RESIZE = 0, 1, 2  # how a policy treats a side that is not a multiple of the patch size

_OPTIONS = 512  # maximum number of candidate sizes per image


@njit(nogil=True, cache=True)
def undrop(tokens, keep, offsets, capacity):  # type: ignore[no-untyped-def]
    """See `reference_fill.undrop`; `tokens` (M,) are the most that each image may hold. Changes `keep` in place."""
    for p in range(len(offsets) - 1):
        start, end = offsets[p], offsets[p + 1]
        left, dropped = np.int64(capacity), np.int64(0)
        for i in range(start, end):
            left -= keep[i]
            dropped += tokens[i] - keep[i]
        left = min(left, dropped)
        for i in range(start, end):  # each image's share of the remaining slots is its share of the remaining drops
            if left <= 0:
                break
            own = np.int64(tokens[i] - keep[i])
            share = -(-left * own // dropped)
            keep[i] += share
            left -= share
            dropped -= own


@njit(nogil=True, cache=True)
def trim(least, keep, offsets, capacity):  # type: ignore[no-untyped-def]
    """See `reference_fill.trim`; changes `keep` in place, pack by pack."""
    for p in range(len(offsets) - 1):
        start, end = offsets[p], offsets[p + 1]
        over, slack = -np.int64(capacity), np.int64(0)
        for i in range(start, end):
            over += keep[i]
            slack += keep[i] - least[i]
        for i in range(start, end):
            if over <= 0:
                break
            own = np.int64(keep[i] - least[i])
            share = -(-over * own // slack)
            keep[i] -= share
            over -= share
            slack -= own


@njit(nogil=True, cache=True)
def _option(found, count, w, h, gw, gh, keep, width, height, columns, rows, limit, cap):  # type: ignore[no-untyped-def]
    """Add a size to the options; returns their number.

    A size is left out if one of as many tokens changes the image less.
    """
    tokens = columns * rows
    if columns < 1 or rows < 1 or tokens > limit:
        return count
    kept = max(1, min(tokens, max(keep, cap), (2 * keep * tokens + gw * gh) // (2 * gw * gh)))
    change = max(abs(width - w) * 1_000_000 // w, abs(height - h) * 1_000_000 // h)
    at = count
    for j in range(count):
        if found[j, 0] == kept:
            if found[j, 5] <= change:
                return count
            at = j
    if at == _OPTIONS:
        return count
    found[at, 0], found[at, 1], found[at, 2] = kept, width, height
    found[at, 3], found[at, 4], found[at, 5] = columns, rows, change
    return max(count, at + 1)


@njit(nogil=True, cache=True)
def options(size, grid, keep, patch, multiple, edge, max_scale, max_tokens, cap, found):  # type: ignore[no-untyped-def]
    """See `reference_fill.options`.

    Writes (keep, width, height, gw, gh, change) rows to `found` (`_OPTIONS`, 6).
    """
    w, h, gw, gh = np.int64(size[0]), np.int64(size[1]), np.int64(grid[0]), np.int64(grid[1])
    kept, unit = np.int64(keep), np.int64(patch * multiple)
    limit, cap = max(np.int64(max_tokens), gw * gh), np.int64(cap)
    count = _option(found, 0, w, h, gw, gh, kept, w, h, gw, gh, limit, cap)
    if edge == RESIZE:
        across, down = gw // multiple, gh // multiple
        max_dx, max_dy = np.int64(across * max_scale), np.int64(down * max_scale)
        for dx in range(-max_dx, max_dx + 1):
            for dy in range(-max_dy, max_dy + 1):
                if dx * dy >= 0:
                    columns, rows = (across + dx) * multiple, (down + dy) * multiple
                    width, height = w + dx * unit, h + dy * unit
                    count = _option(found, count, w, h, gw, gh, kept, width, height, columns, rows, limit, cap)
        return count
    max_dx, max_dy = np.int64(w * max_scale), np.int64(h * max_scale)
    for along in range(2):  # sizes at which the number of columns changes, then the number of rows
        side, other, reach = (w, h, max_dx) if along == 0 else (h, w, max_dy)
        for cells in range((side - reach) // unit, (side + reach) // unit + 2):
            for step in range(2):
                new = cells * unit + (step if edge == PAD else -step)
                scaled = (2 * new * other + side) // (2 * side)
                width, height = (new, scaled) if along == 0 else (scaled, new)
                if abs(width - w) > max_dx or abs(height - h) > max_dy or width < 1 or height < 1:
                    continue
                if edge == PAD:
                    columns, rows = -(-width // unit) * multiple, -(-height // unit) * multiple
                else:
                    columns, rows = width // unit * multiple, height // unit * multiple
                count = _option(found, count, w, h, gw, gh, kept, width, height, columns, rows, limit, cap)
    return count


@njit(nogil=True, cache=True)
def fewest(size, grid, keep, patch, multiple, edge, max_scale, max_tokens, cap, least):  # type: ignore[no-untyped-def]
    """The fewest tokens that any option of each image keeps, to `least` (M,)."""
    found = np.empty((_OPTIONS, 6), np.int64)
    for i in range(len(keep)):
        count = options(size[i], grid[i], keep[i], patch, multiple, edge, max_scale, max_tokens, cap, found)
        least[i] = keep[i]
        for j in range(count):
            least[i] = min(least[i], found[j, 0])


@njit(nogil=True, cache=True)
def rescale(size, grid, keep, offsets, capacity, patch, multiple, edge, max_scale, max_tokens, cap):  # type: ignore[no-untyped-def]
    """See `reference_fill.rescale`; changes `size`, `grid` and `keep` in place, pack by pack."""
    largest = 0
    for p in range(len(offsets) - 1):
        largest = max(largest, offsets[p + 1] - offsets[p])
    words = (capacity >> 6) + 1
    reach = np.zeros((largest + 1, words), np.uint64)  # reach[i]: the token sums of the first i images, as bits
    found = np.empty((_OPTIONS, 6), np.int64)
    for p in range(len(offsets) - 1):
        start, end = offsets[p], offsets[p + 1]
        tokens = np.int64(0)
        for i in range(start, end):
            tokens += keep[i]
        if tokens == capacity:
            continue
        reach[0, 0] = 1
        for i in range(start, end):
            before, after = reach[i - start], reach[i - start + 1]
            after[:] = 0
            count = options(size[i], grid[i], keep[i], patch, multiple, edge, max_scale, max_tokens, cap, found)
            for j in range(count):
                whole, bits = found[j, 0] >> 6, np.uint64(found[j, 0] & 63)
                for word in range(whole, words):
                    after[word] |= before[word - whole] << bits
                if bits > 0:
                    for word in range(whole + 1, words):
                        after[word] |= before[word - whole - 1] >> (np.uint64(64) - bits)
        target = np.int64(capacity)
        last = reach[end - start]
        while not (last[target >> 6] >> np.uint64(target & 63)) & np.uint64(1):
            target -= 1
        for i in range(end - 1, start - 1, -1):
            before = reach[i - start]
            count = options(size[i], grid[i], keep[i], patch, multiple, edge, max_scale, max_tokens, cap, found)
            best = -1
            for j in range(count):
                rest = target - found[j, 0]
                if rest < 0 or not (before[rest >> 6] >> np.uint64(rest & 63)) & np.uint64(1):
                    continue
                if best < 0 or found[j, 5] < found[best, 5]:
                    best = j
            target -= found[best, 0]
            keep[i] = found[best, 0]
            size[i, 0], size[i, 1] = found[best, 1], found[best, 2]
            grid[i, 0], grid[i, 1] = found[best, 3], found[best, 4]
