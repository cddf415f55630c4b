"""What the compiled packers do, in plain Python: slow and short.

Tests hold `_kernels.py` equal to it; it imports nothing from there.

Every packer takes `lengths` (tokens of each item, in order of arrival), `capacity` L, `max_items` K, `lookahead` R and
`flush`, and gives the packs as lists of item numbers, in the order in which they leave. Without `flush` the items
that could still be joined by later arrivals stay behind; calling again with those first, then the new arrivals, goes
on as if there had been no break.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter

_MASK = (1 << 64) - 1


def next_fit(lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool) -> list[list[int]]:
    """One open pack; an item that does not fit closes it (Johnson 1973). What NaViT implementations do in `forward`.

    ```
    lengths 6 5 4 3 2, L = 10      |666666....|555554444.|33322.....|
    packs   [6] [5 4] [3 2]
    ```
    """
    packs: list[list[int]] = []
    pack: list[int] = []
    for item, length in enumerate(lengths):
        if sum(lengths[i] for i in pack) + length > capacity or len(pack) == max_items:
            packs.append(pack)
            pack = []
        pack.append(item)
    return [*packs, pack] if flush and pack else packs


def first_fit(lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool) -> list[list[int]]:
    """Each item goes into the oldest open pack that has room (Johnson 1973); open packs hold at most R items together.

    A pack that is full leaves at once. When R items are held, the oldest open pack leaves.

    ```
    lengths 6 5 4 3 2, L = 10      |6666664444|5555533322|
    packs   [6 4] [5 3 2]
    ```
    """
    return _online(lengths, capacity, max_items, lookahead, flush, best=False)


def best_fit(lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool) -> list[list[int]]:
    """Each item goes into the open pack that it leaves least room in (Johnson 1973); of equals, the oldest.

    Packs leave as in `first_fit`.

    ```
    lengths 6 7 3 4, L = 10        |7777777333|6666664444|
    packs   [7 3] [6 4]            3 leaves less room beside the 7 than beside the 6
    ```
    """
    return _online(lengths, capacity, max_items, lookahead, flush, best=True)


def _online(
    lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool, best: bool
) -> list[list[int]]:
    packs: list[list[int]] = []
    open_packs: list[list[int]] = []
    for item, length in enumerate(lengths):
        rooms = [capacity - sum(lengths[i] for i in pack) for pack in open_packs]
        fitting = [p for p, room in enumerate(rooms) if room >= length]
        if not fitting:
            fitting = [len(open_packs)]
            open_packs.append([])
            rooms.append(capacity)
        pack = open_packs[min(fitting, key=lambda p: (rooms[p], p) if best else (p, 0))]
        pack.append(item)
        if sum(lengths[i] for i in pack) < capacity and len(pack) < max_items:
            if sum(map(len, open_packs)) < lookahead:
                continue
            pack = open_packs[0]
        open_packs.remove(pack)
        packs.append(pack)
    return packs + open_packs if flush else packs


def first_fit_decreasing(
    lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool
) -> list[list[int]]:
    """In blocks of 4R items, longest first, each goes into the first pack that has room (Johnson 1973).

    ```
    lengths 2 5 4 7 2, L = 10      |777777722.|555554444.|22........|
    packs   [7 2] [5 4] [2]        in the order 7 5 4 2 2
    ```
    """
    return _decreasing(lengths, capacity, max_items, lookahead, flush, best=False)


def best_fit_decreasing(
    lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool
) -> list[list[int]]:
    """In blocks of 4R items, longest first, each goes where it leaves least room; of equals, the pack last changed.

    ```
    lengths 3 5 4 6 2, L = 10      |6666664444|5555533322|
    packs   [6 4] [5 3 2]          in the order 6 5 4 3 2: 4 leaves nothing beside the 6, and 1 beside the 5
    ```
    """
    return _decreasing(lengths, capacity, max_items, lookahead, flush, best=True)


def _decreasing(
    lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool, best: bool
) -> list[list[int]]:
    emitted: list[list[int]] = []
    for start in range(0, len(lengths), 4 * lookahead):
        block = range(start, min(len(lengths), start + 4 * lookahead))
        if len(block) < 4 * lookahead and not flush:
            break
        packs: list[list[int]] = []
        changed: list[int] = []  # the packs, that changed last at the end
        for item in sorted(block, key=lambda i: (-lengths[i], i)):
            rooms = [capacity - sum(lengths[i] for i in pack) for pack in packs]
            fitting = [p for p in range(len(packs)) if rooms[p] >= lengths[item] and len(packs[p]) < max_items]
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
    lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool, least: list[int] | None = None
) -> list[list[int]]:
    """R items wait; a pack starts with the oldest of them, then takes the largest that fits until none does.

    Of items of one length the oldest goes first. The room is filled up again before each pack, so an item leaves
    within R packs of entering.

    ```
    lengths 3 5 6 2 4, L = 10, R = 5      |333666666.|555554444.|22........|
    packs   [3 6] [5 4] [2]               3 is the oldest, 6 the largest that fits in 7
    ```
    """
    packs: list[list[int]] = []
    arrivals = list(range(len(lengths)))
    while arrivals and (flush or len(arrivals) >= lookahead):
        waiting = arrivals[:lookahead]
        pack = [waiting.pop(0)]
        while len(pack) < max_items:
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
    lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool, least: list[int] | None = None
) -> list[list[int]]:
    """R items wait; a pack starts with the oldest, is filled in order of arrival, and closed by the best subset.

    Filling ends when the room is below six mean lengths of the waiting, or the next does not fit: among the subsets of
    256 waiting items there is then nearly always one that fills the room to the last slot. That holds while the waiting
    are of many lengths, and closing uses up the rare ones; so a length that over a third of them have goes first.
    The room is filled up again before each pack, so an item leaves within R packs of entering.

    ```
    lengths 3 5 6 2 4 2, L = 10, R = 6    |3332255555|6666664444|22........|
    packs   [3 2 5] [6 4] [2]             3 is the oldest, 2 is what over a third of the others are, 5 fills the rest
    ```

    Where the waiting need more packs for their `thirds`, three to a pack, than for their tokens, a full pack saves
    nothing and three thirds do. Then the largest that fits goes next, or two that go better with the one third that the
    pack has, see `next_long`.

    ```
    lengths 4 6 4 4 6 9 9, L = 12, R = 7  |444444444444|666666666666|999999999...|999999999...|
    packs   [4 4 4] [6 6] [9] [9]         4 4 4 are three thirds, 4 6 only two
    ```
    """
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
            item = next(i for i in waiting if lengths[i] == following[0])
            waiting.remove(item)
            pack.append(item)
            room, most = capacity - sum(lengths[i] for i in pack), max_items - len(pack)
            held = [lengths[i] for i in waiting]
            following = following[1:]
            if closing or not room or not most or not held:
                continue
            if scarce:
                pairs = most > 1 and sum(thirds(lengths[i], capacity) for i in pack) == 1
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
                closing, following = True, closing_subset(held, room, most, common)
        if len(pack) < max_items:
            pack += closing_over(pack, waiting, lengths, capacity, least or lengths)
        packs.append(pack)
        arrivals = [i for i in arrivals if i not in pack]
    return packs


def thirds(length: int, capacity: int) -> int:
    """How many of the three thirds of a pack an item takes, however short of a third of L it may be.

    One if it is over a quarter of L, two if it is over half, three if none over a quarter fits beside it; others none.
    No pack holds more than three.
    """
    if 4 * (capacity - length) <= capacity:
        return 3
    return (4 * length > capacity) + (2 * length > capacity)


def next_long(held: list[int], room: int, pairs: bool, capacity: int) -> int:
    """The largest of `held` that fits, or 0. With `pairs`, the larger of two instead, if those are better.

    They are the two over a quarter of L that leave the least room. They are better than one that is not over half of L,
    and than one that is if they leave L / 64 less.
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
    """The shortest waiting item that is too long for the pack, but not once all its items are cut to their `least`.

    No more is cut than would have been left empty. Of items of one length only the oldest is looked at. None is there
    if no item may be cut, or the pack is full.

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


def closing_subset(held: list[int], room: int, most: int, common: int) -> list[int]:
    """The lengths among `held` that close a pack with `room` slots left and place for `most` items.

    Copies of the `common` length (0 is none), as many as can be, and exactly one or two others, if that fills the room;
    or else any subset of the longest 256 others, the one with most copies among those that leave the least room.
    """
    others = Counter(length for length in held if length <= room and length != common)
    copies = min(room // common, held.count(common), most) if common else 0
    for j in range(copies, -1, -1):
        rest = room - j * common
        if rest == 0 or (j < most and others[rest]):
            return [common] * j + [rest] * (rest > 0)
    for j in range(min(copies, most - 2), -1, -1):
        rest = room - j * common
        for length in sorted(others, reverse=True):
            other = rest - length
            if other <= length and others[other] > (other == length):
                return [common] * j + [length, other]
    goal = room - copies * common
    taken: list[int] = []
    sums = [{0}]  # of some of the first 0, 1, 2 ... of those taken
    for length in sorted(others, reverse=True):
        for _ in range(min(others[length], room // length)):
            if len(taken) < 256 and goal not in sums[-1]:
                taken.append(length)
                sums.append(sums[-1] | {s + length for s in sums[-1] if s + length <= room})
    reached = {j: max(s for s in sums[-1] if s <= room - j * common) for j in range(copies + 1)}
    j = max(reached, key=lambda j: (j * common + reached[j], j))
    chosen = [common] * j
    total, i = reached[j], len(taken)
    while total:
        while total in sums[i - 1]:
            i -= 1
        i -= 1
        chosen.append(taken[i])
        total -= taken[i]
    return chosen if len(chosen) <= most else sorted(chosen, reverse=True)[:most]


def undrop(tokens: list[int], keep: list[int], capacity: int) -> list[int]:
    """Leftover slots of a pack go back to its images, as shares of what each had dropped, rounded up while any last.

    ```
    tokens 8 6, keep 4 3, L = 10      |1111222...|  3 slots left, 4 and 3 dropped
    keep   6 4                        |1111112222|
    ```
    """
    left = min(capacity - sum(keep), sum(tokens) - sum(keep))
    kept = []
    for i, (all_, some) in enumerate(zip(tokens, keep, strict=True)):
        dropped = sum(tokens[i:]) - sum(keep[i:])
        share = -(-left * (all_ - some) // dropped) if left else 0
        kept.append(some + share)
        left -= share
    return kept


def mix(word: int) -> int:
    """The finaliser of splitmix64 on one word."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & _MASK
    return word ^ (word >> 31)


def kept_tokens(key: int, tokens: int, keep: int) -> list[int]:
    """A forward Fisher-Yates shuffle drawn from `key`; its first `keep` entries, in ascending order."""
    permutation = list(range(tokens))
    for i in range(keep):
        key = key + 0x9E3779B97F4A7C15 & _MASK
        j = i + mix(key) % (tokens - i)
        permutation[i], permutation[j] = permutation[j], permutation[i]
    return sorted(permutation[:keep])


def uniform(state: int) -> tuple[int, float]:
    """The next state of a key's stream, and a value in (0, 1)."""
    state = state + 0x9E3779B97F4A7C15 & _MASK
    return state, ((mix(state) >> 12) + 0.5) / 2**52


def normal(state: int) -> tuple[int, float]:
    """The next state of a key's stream, and a standard normal value (Box and Muller 1958)."""
    state, u = uniform(state)
    state, v = uniform(state)
    return state, math.sqrt(-2 * math.log(u)) * math.cos(2 * math.pi * v)


def log_gamma_value(state: int, shape: float) -> tuple[int, float]:
    """The next state of a key's stream, and the logarithm of a gamma value (Marsaglia and Tsang 2000)."""
    boost = 0.0
    if shape < 1:  # gamma(a) is gamma(a + 1) u^(1/a)
        state, u = uniform(state)
        boost, shape = math.log(u) / shape, shape + 1
    d = shape - 1 / 3
    while True:
        state, x = normal(state)
        state, u = uniform(state)
        v = (1 + x / math.sqrt(9 * d)) ** 3
        if v > 0 and math.log(u) < x * x / 2 + d - d * v + d * math.log(v):
            return state, math.log(d * v) + boost


def beta(key: int, a: float, b: float) -> float:
    """A beta value drawn from `key`: x / (x + y) of two gamma values."""
    key, x = log_gamma_value(key, a)
    key, y = log_gamma_value(key, b)
    return 1 / (1 + math.exp(min(700.0, y - x)))


def truncated_normal(key: int, mean: float, std: float, low: float, high: float) -> float:
    """A normal value within [low, high) drawn from `key`: the first that lies within."""
    key, z = normal(key)
    while not low <= mean + std * z < high:
        key, z = normal(key)
    return mean + std * z


def random_crop(
    key: int, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[int, int, int, int]:
    """(left, top, width, height) of a crop drawn from `key`, as GoogLeNet's (Szegedy et al. 2015, section 6).

    Its area is a uniform share of the image, its aspect is uniform in the logarithm; ten are drawn until one lies
    within the image. Failing that, it is the largest at the centre whose aspect is within `ratio`.
    """
    for _ in range(10):
        key, u = uniform(key)
        key, v = uniform(key)
        area = (scale[0] + (scale[1] - scale[0]) * u) * (width * height)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * v)
        w, h = math.floor(math.sqrt(area * aspect) + 0.5), math.floor(math.sqrt(area / aspect) + 0.5)
        if 1 <= w <= width and 1 <= h <= height:
            key, u = uniform(key)
            key, v = uniform(key)
            return int(u * (width - w + 1)), int(v * (height - h + 1)), w, h
    w = max(1, min(width, math.floor(height * ratio[1] + 0.5)))
    h = max(1, min(height, math.floor(width / ratio[0] + 0.5)))
    return (width - w) // 2, (height - h) // 2, w, h


def trim(least: list[int], keep: list[int], capacity: int) -> list[int]:
    """What a pack holds beyond L is cut from its images, as shares of what each may lose, rounded up while any is left.

    ```
    keep 7 5, least 6 4, L = 11       |11111112222|2   1 over, 1 and 1 may go
    keep 6 5                          |11111122222|
    ```
    """
    over = sum(keep) - capacity
    kept = []
    for i, (some, fewest) in enumerate(zip(keep, least, strict=True)):
        slack = sum(keep[i:]) - sum(least[i:])
        share = -(-over * (some - fewest) // slack) if over > 0 else 0
        kept.append(some - share)
        over -= share
    return kept


Option = tuple[int, int, int, int, int, int]


def options(
    size: tuple[int, int],
    grid: tuple[int, int],
    keep: int,
    patch: int,
    multiple: int,
    edge: str,
    max_scale: float,
    max_tokens: int,
) -> list[Option]:
    """The sizes near an image's own: (keep, width, height, gw, gh, change in millionths), the nearest for each `keep`.

    No side changes by more than `max_scale`, and no grid grows beyond `max_tokens`. Where the policy rounds sides to
    whole patches ("resize"), both may change by whole patches, in one direction; else the aspect stays to the pixel,
    and the sizes are those at which a column or a row comes or goes. As large a share of the tokens is kept.
    """
    (w, h), (gw, gh), unit = size, grid, patch * multiple
    x_most, y_most = int(w * max_scale), int(h * max_scale)
    sizes = [(w, h)]
    if edge == "resize":
        across, down = int(gw // multiple * max_scale), int(gh // multiple * max_scale)
        steps = itertools.product(range(-across, across + 1), range(-down, down + 1))
        sizes += [(w + dx * unit, h + dy * unit) for dx, dy in steps if dx * dy >= 0]
    else:
        step = 1 if edge == "pad" else -1
        columns_at, rows_at = (
            [
                side
                for c in range((own - most) // unit, (own + most) // unit + 2)
                for side in (c * unit, c * unit + step)
            ]
            for own, most in ((w, x_most), (h, y_most))
        )
        sizes += [(width, (2 * width * h + w) // (2 * w)) for width in columns_at]
        sizes += [((2 * height * w + h) // (2 * h), height) for height in rows_at]
    found: dict[int, Option] = {}
    for width, height in sizes:
        if edge != "resize" and (abs(width - w) > x_most or abs(height - h) > y_most or min(width, height) < 1):
            continue
        columns, rows = gw, gh
        if (width, height) != size:
            columns, rows = (
                (side if edge == "crop" else side + unit - 1) // unit * multiple for side in (width, height)
            )
        tokens = columns * rows
        if tokens < 1 or tokens > max(max_tokens, gw * gh):
            continue
        kept = max(1, min(tokens, (2 * keep * tokens + gw * gh) // (2 * gw * gh)))
        change = max(abs(width - w) * 1_000_000 // w, abs(height - h) * 1_000_000 // h)
        if kept not in found or change < found[kept][5]:
            found[kept] = (kept, width, height, columns, rows, change)
    return list(found.values())


def rescale(choices: list[list[Option]], capacity: int) -> list[Option]:
    """One of the options of each image of a pack, so that together they fill as many of its L slots as they can.

    From the last image to the first, each takes the option that changes it least with which the others can do the rest.

    ```
    tokens of the options, an image's own first: 8 7 9, 5 4 6; L = 12
    |777777755555|      8 + 5 is over; the second keeps its own 5, and the first takes 7
    ```
    """
    sums = [{0}]
    for found in choices:
        sums.append({total + option[0] for total in sums[-1] for option in found if total + option[0] <= capacity})
    target = max(sums[-1])
    chosen: list[Option] = []
    for before, found in zip(sums[-2::-1], choices[::-1], strict=True):
        chosen.append(min((option for option in found if target - option[0] in before), key=lambda option: option[5]))
        target -= chosen[-1][0]
    return chosen[::-1]
