"""What the compiled packers do, in plain Python: slow and short.

Tests hold `_kernels.py` equal to it; it imports nothing from there.

Every packer takes `lengths` (tokens of each item, in order of arrival), `capacity` L, `max_items` K, `lookahead` R and
`flush`, and gives the packs as lists of item numbers, in the order in which they leave. Without `flush` the items
that could still be joined by later arrivals stay behind; calling again with those first, then the new arrivals, goes
on as if there had been no break.
"""

from __future__ import annotations

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
    packs: list[list[int]] = []
    open_packs: list[list[int]] = []
    for item, length in enumerate(lengths):
        for pack in open_packs:
            if sum(lengths[i] for i in pack) + length <= capacity:
                break
        else:
            pack = []
            open_packs.append(pack)
        pack.append(item)
        if sum(lengths[i] for i in pack) < capacity and len(pack) < max_items:
            if sum(map(len, open_packs)) < lookahead:
                continue
            pack = open_packs[0]
        open_packs.remove(pack)
        packs.append(pack)
    return packs + open_packs if flush else packs


def largest_fit(lengths: list[int], capacity: int, max_items: int, lookahead: int, flush: bool) -> list[list[int]]:
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
            if not fitting:
                break
            pack.append(max(fitting, key=lambda i: (lengths[i], -i)))
            waiting.remove(pack[-1])
        packs.append(pack)
        arrivals = [i for i in arrivals if i not in pack]
    return packs


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
