"""The compiled linear programme of cutting stock; `cutting_stock.py` explains it.

No fast math and no reduction of NumPy's: each sum has one order, so that every machine finds the same duals.
"""

from __future__ import annotations

import numpy as np
from numba import njit

# m distinct lengths, ascending, counts of each; L capacity. Pattern p holds copies[at] items of the length indices[at]
# for `at` from starts[p] to starts[p + 1]. The basis is m patterns; inverse[i, k], (m, m), belongs to length i and the
# k-th pattern of the basis, which the programme uses packs[k] times. duals (m,) are the values of the lengths at which
# each pattern of the basis is worth 1.

_LEAST_PIVOT = 1e-9
_LEAST_GAIN = 1e-9  # a pattern enters the basis if it is worth more than 1 by this much
_LEAST_NEW = 1e-7  # and is first added to the known patterns by this much
_SHARE = 0.3
_PERTURBATION = 1e-6
_DRIFT = 1e-7


@njit(nogil=True, cache=True)
def most_valuable(lengths, values, best, choice):  # type: ignore[no-untyped-def]
    """Solve the unbounded knapsack for every room.

    Writes the greatest total value to `best` (L + 1,), and to `choice` (L + 1,) the index of one length of such a set,
    or -1 for the empty set.
    """
    best[:] = 0
    choice[:] = -1
    for i in range(len(lengths)):
        length, value = lengths[i], values[i]
        if value <= best[length]:
            continue  # shorter lengths are worth as much
        for room in range(length, len(best)):
            total = best[room - length] + value
            if total > best[room]:
                best[room] = total
                choice[room] = i


@njit(nogil=True, cache=True)
def _append(patterns, count, i, lengths, choice, room):  # type: ignore[no-untyped-def]
    """Write the most valuable pattern that holds length i behind the `count` known ones; returns the patterns.

    `room` is what length i leaves. The arrays are replaced by longer ones where they are full.
    """
    starts, indices, copies = patterns
    end = starts[count]
    if count + 2 > len(starts):
        starts = np.concatenate((starts, np.zeros_like(starts)))
    if end + len(lengths) > len(indices):
        indices = np.concatenate((indices, np.zeros(len(indices) + len(lengths), np.int64)))
        copies = np.concatenate((copies, np.zeros(len(copies) + len(lengths), np.int64)))
    while True:
        at = starts[count]
        while at < end and indices[at] != i:
            at += 1
        if at == end:
            indices[end], copies[end] = i, 0
            end += 1
        copies[at] += 1
        i = choice[room]
        if i < 0:
            break
        room -= lengths[i]
    starts[count + 1] = end
    return starts, indices, copies


@njit(nogil=True, cache=True)
def _worth(patterns, p, duals):  # type: ignore[no-untyped-def]
    starts, indices, copies = patterns
    worth = 0.0
    for at in range(starts[p], starts[p + 1]):
        worth += copies[at] * duals[indices[at]]
    return worth


@njit(nogil=True, cache=True)
def _known(patterns, first, last):  # type: ignore[no-untyped-def]
    """Whether pattern `last` equals one of the patterns from `first` to `last`, entries in any order."""
    starts, indices, copies = patterns
    start, end = starts[last], starts[last + 1]
    for p in range(first, last):
        if starts[p + 1] - starts[p] != end - start:
            continue
        same = 0
        for a in range(starts[p], starts[p + 1]):
            found = False
            for b in range(start, end):
                found |= indices[a] == indices[b] and copies[a] == copies[b]
            if not found:
                break
            same += 1
        if same == end - start:
            return True
    return False


@njit(nogil=True, cache=True)
def _generate(patterns, count, lengths, duals, best, choice):  # type: ignore[no-untyped-def]
    """Add the most valuable pattern of each length, of those worth more than 1; returns the patterns and their number.

    `best` and `choice` may come from other values than `duals`: smoothed ones.
    """
    first = count
    for i in range(len(lengths)):
        patterns = _append(patterns, count, i, lengths, choice, len(best) - 1 - lengths[i])
        if _worth(patterns, count, duals) > 1 + _LEAST_NEW and not _known(patterns, first, count):
            count += 1
    return patterns, count


@njit(nogil=True, cache=True)
def _candidates(patterns, count, duals, worths, candidates):  # type: ignore[no-untyped-def]
    """Write the patterns that gain at least a share of what the best one gains to `candidates`.

    Returns their number and the gain below which it is time to look at all patterns again.
    """
    starts, indices, copies = patterns
    most, at = 0.0, 0
    for p in range(count):
        worth, end = 0.0, starts[p + 1]
        while at < end:
            worth += copies[at] * duals[indices[at]]
            at += 1
        worths[p] = worth
        most = max(most, worth)
    least = max(_LEAST_GAIN, _SHARE * (most - 1))
    number = 0
    for p in range(count):
        if worths[p] > 1 + least:
            candidates[number] = p
            number += 1
    return number, least


@njit(nogil=True, cache=True)
def _entering(patterns, candidates, least, duals):  # type: ignore[no-untyped-def]
    """The candidate worth most and its worth; -1 if none gains more than `least`."""
    entering, most = -1, 1 + least
    for p in candidates:
        worth = _worth(patterns, p, duals)
        if worth > most:
            entering, most = p, worth
    return entering, most


@njit(nogil=True, cache=True)
def _leaving(packs, rates):  # type: ignore[no-untyped-def]
    """The place in the basis that is used up first, as the entering pattern replaces `rates` (m,); -1 if none is."""
    leaving, least = -1, np.inf
    for k in range(len(packs)):
        if rates[k] > _LEAST_PIVOT:
            uses = packs[k] / rates[k]
            if uses < least or (uses == least and rates[k] > rates[leaving]):
                leaving, least = k, uses
    return leaving


@njit(nogil=True, cache=True)
def _replace(inverse, packs, duals, rates, k, worth):  # type: ignore[no-untyped-def]
    """Put a pattern in place k of the basis: `rates` of the others replace one of it."""
    m, rate = len(packs), rates[k]
    uses = packs[k] / rate
    for other in range(m):
        packs[other] = max(0.0, packs[other] - uses * rates[other])
    packs[k] = uses
    rates[k] = 0
    gain = (1 - worth) / rate
    for i in range(m):
        own = inverse[i, k]
        if own != 0:
            duals[i] += gain * own
            own /= rate
            for other in range(m):
                inverse[i, other] -= rates[other] * own
            inverse[i, k] = own


@njit(nogil=True, cache=True)
def _improve(patterns, count, basis, inverse, packs, duals, pivots):  # type: ignore[no-untyped-def]
    """Run the primal simplex over the known patterns, for at most `pivots` steps; returns the steps left."""
    starts, indices, copies = patterns
    rates, worths, candidates = np.empty(len(packs)), np.empty(count), np.empty(count, np.int64)
    number, least = 0, 0.0
    while pivots > 0:
        entering, worth = _entering(patterns, candidates[:number], least, duals)
        if entering < 0:
            number, least = _candidates(patterns, count, duals, worths, candidates)
            if number == 0:
                break
            continue
        rates[:] = 0
        for at in range(starts[entering], starts[entering + 1]):
            for k in range(len(packs)):
                rates[k] += inverse[indices[at], k] * copies[at]
        k = _leaving(packs, rates)
        if k < 0:
            break
        _replace(inverse, packs, duals, rates, k, worth)
        basis[k] = entering
        pivots -= 1
    return pivots


@njit(nogil=True, cache=True)
def _invert(patterns, basis, inverse):  # type: ignore[no-untyped-def]
    """Compute `inverse` from the basis, by Gauss and Jordan with partial pivoting; False if it is singular."""
    starts, indices, copies = patterns
    m = len(basis)
    rows = np.zeros((m, 2 * m))  # pattern k of the basis, and the unit vector k
    for k in range(m):
        for at in range(starts[basis[k]], starts[basis[k] + 1]):
            rows[k, indices[at]] = copies[at]
        rows[k, m + k] = 1
    for i in range(m):
        top = i
        for k in range(i + 1, m):
            if abs(rows[k, i]) > abs(rows[top, i]):
                top = k
        if abs(rows[top, i]) < _LEAST_PIVOT:
            return False
        for j in range(2 * m):
            rows[i, j], rows[top, j] = rows[top, j], rows[i, j]
        scale = rows[i, i]
        for j in range(2 * m):
            rows[i, j] /= scale
        for k in range(m):
            factor = rows[k, i]
            if k != i and factor != 0:
                for j in range(i, 2 * m):
                    rows[k, j] -= factor * rows[i, j]
    for i in range(m):
        for k in range(m):
            inverse[i, k] = rows[i, m + k]
    return True


@njit(nogil=True, cache=True)
def _refresh(inverse, counts, packs, duals):  # type: ignore[no-untyped-def]
    """Compute `packs` and `duals` from the inverse, which removes the rounding errors of many steps."""
    packs[:] = 0
    for i in range(len(counts)):
        dual = 0.0
        for k in range(len(counts)):
            packs[k] += inverse[i, k] * counts[i]
            dual += inverse[i, k]
        duals[i] = dual
    for k in range(len(counts)):
        packs[k] = max(0.0, packs[k])


@njit(nogil=True, cache=True)
def _drifted(patterns, basis, duals):  # type: ignore[no-untyped-def]
    """Whether rounding errors have made a pattern of the basis worth other than 1."""
    worst = 0.0
    for p in basis:
        worst = max(worst, abs(_worth(patterns, p, duals) - 1))
    return not worst < _DRIFT


@njit(nogil=True, cache=True)
def _start(lengths, counts, capacity, inverse):  # type: ignore[no-untyped-def]
    """The first basis: for each length, the pattern that holds as many of it as fit."""
    m = len(lengths)
    starts, indices, copies = np.zeros(4 * m + 2, np.int64), np.empty(8 * m, np.int64), np.empty(8 * m, np.int64)
    inverse[:] = 0
    for i in range(m):
        starts[i + 1], indices[i], copies[i] = i + 1, i, capacity // lengths[i]
        inverse[i, i] = 1 / copies[i]
    return starts, indices, copies


@njit(nogil=True, cache=True)
def solve(lengths, counts, capacity, tolerance, smoothing, rounds, pivots, prices):  # type: ignore[no-untyped-def]
    """Solve the linear programme by column generation, for at most `rounds` rounds and `pivots` steps.

    Writes feasible duals to `prices` (m,); returns the patterns, the basis, the packs of each pattern of the basis, and
    the rounds and steps taken.
    """
    m, limit = len(lengths), pivots
    inverse, packs, duals = np.empty((m, m)), np.empty(m), np.empty(m)
    best, choice = np.empty(capacity + 1), np.empty(capacity + 1, np.int64)
    patterns, count, basis = _start(lengths, counts, capacity, inverse), m, np.arange(m)
    values, perturbed = np.empty(m), np.empty(m)  # equal packs in several places of the basis could make it cycle
    bound = 0.0
    for i in range(m):
        perturbed[i] = counts[i] * (1 + _PERTURBATION * (i * 0.6180339887498949 % 1))
        prices[i] = lengths[i] / capacity
        bound += counts[i] * prices[i]
    weight, turn = smoothing, 0
    while turn < rounds:
        turn += 1
        _refresh(inverse, perturbed, packs, duals)
        if _drifted(patterns, basis, duals):
            if not _invert(patterns, basis, inverse):
                break
            _refresh(inverse, perturbed, packs, duals)
        needed = proven = 0.0
        for i in range(m):
            values[i] = weight * prices[i] + (1 - weight) * max(0.0, duals[i])
            needed += counts[i] * duals[i]
            proven += counts[i] * values[i]
        most_valuable(lengths, values, best, choice)
        if proven > bound * best[capacity]:
            bound = proven / best[capacity]
            for i in range(m):
                prices[i] = values[i] / best[capacity]
        if bound >= needed * (1 - tolerance) or pivots == 0:
            break
        before = count
        patterns, count = _generate(patterns, count, lengths, duals, best, choice)
        if count > before:
            weight = smoothing
            pivots = _improve(patterns, count, basis, inverse, packs, duals, pivots)
        elif weight == 0:
            break
        else:
            weight = max(0.0, weight - 0.25)
    _refresh(inverse, counts, packs, duals)
    return patterns, basis, packs, turn, limit - pivots


@njit(nogil=True, cache=True)
def _last_group(lengths, tokens, items, before, after, origin, groups):  # type: ignore[no-untyped-def]
    """Add a last group to the best split of each prefix.

    `before` and `after` (m + 1,) hold the tokens that splits lose. The index of the group's first length, `origin`
    (m + 1,), ascends with the prefix, hence divide and conquer.
    """
    stack = [(groups, len(after), groups - 1, len(lengths) - 1)]  # ends from lo to hi, group starts from first to last
    while len(stack):
        lo, hi, first, last = stack.pop()
        if lo >= hi:
            continue
        end = (lo + hi) // 2
        after[end] = np.iinfo(np.int64).max
        for start in range(first, min(last, end - 1) + 1):
            lost = tokens[end] - tokens[start] - lengths[start] * (items[end] - items[start])
            if before[start] + lost < after[end]:
                after[end], origin[end] = before[start] + lost, start
        stack.append((lo, end, first, origin[end]))
        stack.append((end + 1, hi, origin[end], last))


@njit(nogil=True, cache=True)
def group_starts(lengths, counts, groups):  # type: ignore[no-untyped-def]
    """Split ascending lengths into `groups` runs so that rounding each down to its run's first loses fewest tokens.

    Returns the first index of each run.
    """
    m = len(lengths)
    items, tokens = np.zeros(m + 1, np.int64), np.zeros(m + 1, np.int64)
    for i in range(m):
        items[i + 1] = items[i] + counts[i]
        tokens[i + 1] = tokens[i] + counts[i] * lengths[i]
    before, after = np.zeros(m + 1, np.int64), np.zeros(m + 1, np.int64)
    origin = np.zeros((groups, m + 1), np.int32)
    for end in range(1, m + 1):
        before[end] = tokens[end] - lengths[0] * items[end]
    for g in range(1, groups):
        _last_group(lengths, tokens, items, before, after, origin[g], g + 1)
        before, after = after, before
    found, end = np.zeros(groups, np.int64), m
    for g in range(groups - 1, -1, -1):
        found[g] = origin[g, end]
        end = found[g]
    return found
