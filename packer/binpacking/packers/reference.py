"""The packing algorithms in plain Python: slow and short.

Tests check that `_classical.py`, `_decreasing.py`, `_largest_fit.py` and `_subset_sum.py` equal it; it imports none of
them.

Every packer takes `lengths` (tokens of each item, in order of arrival), `capacity` L, `max_items` K, `lookahead` R and
`flush`, and returns the packs as lists of item numbers, in the order in which they are emitted. Without `flush`, items
whose pack later arrivals could still change are left out. Passing these first, then the new arrivals, to another call
gives the packs of one uninterrupted call. `counts` says how many of the K items each counts for, 1 by default.
"""

from __future__ import annotations

from collections import Counter


def next_fit(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """Keep one open pack; an item that does not fit closes it (Johnson 1973).

    This is what NaViT implementations do in `forward`.

    ```
    lengths 6 5 4 3 2, L = 10      |666666....|555554444.|33322.....|
    packs   [6] [5 4] [3 2]
    ```
    """
    weights = counts or [1] * len(lengths)
    packs: list[list[int]] = []
    pack: list[int] = []
    for item in range(len(lengths)):
        together = [*pack, item]
        if sum(lengths[i] for i in together) > capacity or sum(weights[i] for i in together) > max_items:
            packs.append(pack)
            pack = []
        pack.append(item)
    return [*packs, pack] if flush and pack else packs


def first_fit(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """Put each item into the oldest open pack that has room (Johnson 1973).

    Open packs hold at most R items together. A full pack is emitted at once; when R items are held, so is the oldest
    open pack.

    ```
    lengths 6 5 4 3 2, L = 10      |6666664444|5555533322|
    packs   [6 4] [5 3 2]
    ```
    """
    return _online(lengths, capacity, max_items, lookahead, flush, counts, best=False)


def best_fit(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """Put each item into the open pack that it leaves least room in (Johnson 1973).

    Of equals, the oldest is taken.

    Packs are emitted as in `first_fit`.

    ```
    lengths 6 7 3 4, L = 10        |7777777333|6666664444|
    packs   [7 3] [6 4]            3 leaves less room beside the 7 than beside the 6
    ```
    """
    return _online(lengths, capacity, max_items, lookahead, flush, counts, best=True)


def _online(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None,
    best: bool,
) -> list[list[int]]:
    weights = counts or [1] * len(lengths)
    packs: list[list[int]] = []
    open_packs: list[list[int]] = []
    for item, length in enumerate(lengths):
        rooms = [capacity - sum(lengths[i] for i in pack) for pack in open_packs]
        free = [max_items - sum(weights[i] for i in pack) for pack in open_packs]
        fitting = [p for p, room in enumerate(rooms) if room >= length and free[p] >= weights[item]]
        if not fitting:
            fitting = [len(open_packs)]
            open_packs.append([])
            rooms.append(capacity)
        pack = open_packs[min(fitting, key=lambda p: (rooms[p], p) if best else (p, 0))]
        pack.append(item)
        if sum(lengths[i] for i in pack) < capacity and sum(weights[i] for i in pack) < max_items:
            if sum(map(len, open_packs)) < lookahead:
                continue
            pack = open_packs[0]
        open_packs.remove(pack)
        packs.append(pack)
    return packs + open_packs if flush else packs


def first_fit_decreasing(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """In blocks of 4R items, longest first, put each into the first pack with room (Johnson 1973).

    ```
    lengths 2 5 4 7 2, L = 10      |777777722.|555554444.|22........|
    packs   [7 2] [5 4] [2]        in the order 7 5 4 2 2
    ```
    """
    return _decreasing(lengths, capacity, max_items, lookahead, flush, counts, best=False)


def best_fit_decreasing(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """In blocks of 4R items, longest first, put each where it leaves least room.

    Of packs with equal room, the one changed last is taken.

    ```
    lengths 3 5 4 6 2, L = 10      |6666664444|5555533322|
    packs   [6 4] [5 3 2]          in the order 6 5 4 3 2: 4 leaves nothing beside the 6, and 1 beside the 5
    ```
    """
    return _decreasing(lengths, capacity, max_items, lookahead, flush, counts, best=True)


def _decreasing(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    counts: list[int] | None,
    best: bool,
) -> list[list[int]]:
    weights = counts or [1] * len(lengths)
    emitted: list[list[int]] = []
    for start in range(0, len(lengths), 4 * lookahead):
        block = range(start, min(len(lengths), start + 4 * lookahead))
        if len(block) < 4 * lookahead and not flush:
            break
        packs: list[list[int]] = []
        changed: list[int] = []  # pack numbers in the order of their last change
        for item in sorted(block, key=lambda i: (-lengths[i], i)):
            rooms = [capacity - sum(lengths[i] for i in pack) for pack in packs]
            free = [max_items - sum(weights[i] for i in pack) for pack in packs]
            fitting = [p for p in range(len(packs)) if rooms[p] >= lengths[item] and free[p] >= weights[item]]
            if not fitting:
                fitting = [len(packs)]
                packs.append([])
                rooms.append(capacity)
            p = min(fitting, key=lambda p: (rooms[p], -changed.index(p) if p in changed else 0) if best else (p, 0))
            packs[p].append(item)
            changed = [*(q for q in changed if q != p), p]
        emitted += packs
    return emitted


def largest_fit(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    least: list[int] | None = None,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """Start each pack with the oldest of R waiting items; add the largest that fits.

    Of items of equal length the oldest goes first. The waiting room is refilled before each pack, so an item is emitted
    within R packs of entering. Items that count for more than the pack has left are set aside until the next pack.

    ```
    lengths 3 5 6 2 4, L = 10, R = 5      |333666666.|555554444.|22........|
    packs   [3 6] [5 4] [2]               3 is the oldest, 6 the largest that fits in 7
    ```
    """
    weights = counts or [1] * len(lengths)
    packs: list[list[int]] = []
    arrivals = list(range(len(lengths)))
    while arrivals and (flush or len(arrivals) >= lookahead):
        waiting = arrivals[:lookahead]
        pack = [waiting.pop(0)]
        while True:
            waiting = that_count_for(waiting, weights, max_items - sum(weights[i] for i in pack))
            room = capacity - sum(lengths[i] for i in pack)
            fitting = [i for i in waiting if lengths[i] <= room]
            fitting = [max(fitting, key=lambda i: (lengths[i], -i))] if fitting else []
            fitting = fitting or closing_over(pack, waiting, lengths, capacity, least or lengths)
            if not fitting:
                break
            pack.append(fitting[0])
            waiting.remove(pack[-1])
        packs.append(pack)
        arrivals = [i for i in arrivals if i not in pack]
    return packs


def subset_sum(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    least: list[int] | None = None,
    counts: list[int] | None = None,
) -> list[list[int]]:
    """Fill packs from R waiting items in arrival order, close with the best subset.

    A pack starts with the oldest waiting item.

    Filling ends when the room left is below six mean lengths of the waiting items, or the next item does not fit. Among
    the subsets of 256 waiting items there is then nearly always one that fills the room to the last slot. This holds
    while the waiting items have many different lengths, and closing uses up the rare ones; so a length that over a
    third of the items have goes first. The waiting room is refilled before each pack, so an item is emitted within R
    packs of entering.

    ```
    lengths 3 5 6 2 4 2, L = 10, R = 6    |3332255555|6666664444|22........|
    packs   [3 2 5] [6 4] [2]             3 is the oldest, over a third of the others have length 2, 5 fills the rest
    ```

    Where the waiting items need more packs for their `thirds`, three per pack, than for their tokens, filling a pack to
    the last slot saves nothing, but using all three thirds does. Then the largest item that fits goes next, or two
    items that go better with the one third that the pack holds; see `next_long`.

    ```
    lengths 4 6 4 4 6 9 9, L = 12, R = 7  |444444444444|666666666666|999999999...|999999999...|
    packs   [4 4 4] [6 6] [9] [9]         4 4 4 are three thirds, 4 6 only two
    ```
    """
    weights = counts or [1] * len(lengths)
    packs: list[list[int]] = []
    arrivals = list(range(len(lengths)))
    while arrivals and (flush or len(arrivals) >= lookahead):
        waiting = arrivals[:lookahead]
        pack: list[int] = []
        scarce = sum(thirds(lengths[i], capacity) * capacity - 3 * lengths[i] for i in waiting) > 0
        common = -1
        following = [lengths[waiting[0]]]
        closing = False
        while following:
            item = next((i for i in waiting if lengths[i] == following[0]), -1)
            following = following[1:]
            if item < 0:  # set aside since the subset was chosen
                continue
            waiting.remove(item)
            pack.append(item)
            room, left = capacity - sum(lengths[i] for i in pack), max_items - sum(weights[i] for i in pack)
            waiting = that_count_for(waiting, weights, left)
            held = [lengths[i] for i in waiting]
            if closing or not room or not held:
                continue
            items_left = left // min(weights[i] for i in waiting)
            if scarce:
                pairs = items_left > 1 and sum(thirds(lengths[i], capacity) for i in pack) == 1
                length = next_long(held, room, pairs, capacity)
                following = [length] * (length > 0)
                continue
            if common < 0:
                times, common = max((times, length) for length, times in Counter(held).items())
                common = common if 4 * times >= len(held) else 0
            if 0 < common <= room and 3 * held.count(common) > len(held):
                following = [common]
            elif room * len(held) >= 6 * sum(held) and held[0] <= room:
                following = [held[0]]
            else:
                closing, following = True, closing_subset(held, room, items_left, common)
        pack += closing_over(pack, waiting, lengths, capacity, least or lengths)
        packs.append(pack)
        arrivals = [i for i in arrivals if i not in pack]
    return packs


def that_count_for(waiting: list[int], weights: list[int], left: int) -> list[int]:
    """The waiting items that count for at most `left`: others cannot join the pack."""
    return [i for i in waiting if weights[i] <= left]


def thirds(length: int, capacity: int) -> int:
    """Number of a pack's three thirds that an item occupies.

    An item over a quarter of L occupies one, even if it is shorter than a third; over half of L, two; three if no item
    over a quarter fits with it; any other item none. No pack holds more than three.
    """
    if 4 * (capacity - length) <= capacity:
        return 3
    return (4 * length > capacity) + (2 * length > capacity)


def next_long(held: list[int], room: int, pairs: bool, capacity: int) -> int:
    """The largest length in `held` that fits, or 0.

    With `pairs`, the larger of two lengths if two are better.

    The two are those over a quarter of L that leave the least room. They are better than a single length that is at
    most half of L, and better than a longer one if they leave more than L / 64 less room.
    """
    largest = max((length for length in held if length <= room), default=0)
    if pairs:
        long = sorted((length for length in held if 4 * length > capacity), reverse=True)
        sums = [(a + b, a) for i, a in enumerate(long) for b in long[i + 1 :] if a + b <= room]
        both, larger = max(sums, default=(0, 0))
        if both > (largest + capacity // 64 if 2 * largest > capacity else 0):
            return larger
    return largest


def closing_over(pack: list[int], waiting: list[int], lengths: list[int], capacity: int, least: list[int]) -> list[int]:
    """The shortest waiting item that fits only if the pack's items are cut to their `least`.

    Never is more cut than would have stayed empty. Of items of equal length only the oldest is considered. The list is
    empty if no item may be cut or the pack is full.

    ```
    pack 7, waiting 4 5, L = 10, each may lose 1      |7777777444|4     1 is over, 3 would have been empty, 6 + 3 fit
    ```
    """
    room, slack = capacity - sum(lengths[i] for i in pack), sum(lengths[i] - least[i] for i in pack)
    if room > 0:
        for length in sorted({lengths[i] for i in waiting if room < lengths[i] <= 2 * room}):
            item = next(i for i in waiting if lengths[i] == length)
            if least[item] - room <= slack:
                return [item]
    return []


def closing_subset(held: list[int], room: int, items_left: int, common: int) -> list[int]:
    """The lengths in `held` that close a pack with `room` slots and `items_left` items left.

    If it fills the room: as many copies of the `common` length (0 is none) as possible and one or two other lengths.
    Otherwise the subset of the copies and the longest 256 others that leaves the least room; of equals, the one with
    the most copies.
    """
    others = Counter(length for length in held if length <= room and length != common)
    copies = min(room // common, held.count(common), items_left) if common else 0
    for j in range(copies, -1, -1):
        rest = room - j * common
        if rest == 0 or (j < items_left and others[rest]):
            return [common] * j + [rest] * (rest > 0)
    for j in range(min(copies, items_left - 2), -1, -1):
        rest = room - j * common
        for length in sorted(others, reverse=True):
            other = rest - length
            if other <= length and others[other] > (other == length):
                return [common] * j + [length, other]
    goal = room - copies * common
    candidates: list[int] = []
    sums = [{0}]  # sums[i]: sums of subsets of the first i lengths of `candidates`
    for length in sorted(others, reverse=True):
        for _ in range(min(others[length], room // length)):
            if len(candidates) < 256 and goal not in sums[-1]:
                candidates.append(length)
                sums.append(sums[-1] | {s + length for s in sums[-1] if s + length <= room})
    reached = {j: max(s for s in sums[-1] if s <= room - j * common) for j in range(copies + 1)}
    j = max(reached, key=lambda j: (j * common + reached[j], j))
    chosen = [common] * j
    total, i = reached[j], len(candidates)
    while total:
        while total in sums[i - 1]:
            i -= 1
        i -= 1
        chosen.append(candidates[i])
        total -= candidates[i]
    return chosen if len(chosen) <= items_left else sorted(chosen, reverse=True)[:items_left]
