"""The packer `priced` in plain Python, which `_priced.py` must equal.

It works on lists of whole numbers, as the packers of `reference.py`, and takes one more: `price`, the price of each
length from 0 to L.
"""

from __future__ import annotations

from patchnpack.packer.binpacking.packers.reference import closing_over, that_count_for


def priced(
    lengths: list[int],
    capacity: int,
    max_items: int,
    lookahead: int,
    flush: bool,
    least: list[int] | None,
    price: list[int],
    counts: list[int] | None = None,
) -> list[list[int]]:
    """Start with the oldest of R waiting items, close with the subset of the highest total price.

    `price` has a price for each length up to L; longer items are worth at least as much. Filling in arrival order ends
    as in `subset_sum`. Of subsets of equal price, the one with the most tokens is best; see `closing_by_price`.

    ```
    lengths 3 5 3 5 4, L = 10, R = 5      |3334444333|5555555555|
    packs   [3 4 3] [5 5]                 4 and 3 are worth more beside 3 than 5 is
    ```
    """
    weights = counts or [1] * len(lengths)
    packs: list[list[int]] = []
    arrivals = list(range(len(lengths)))
    while arrivals and (flush or len(arrivals) >= lookahead):
        waiting = arrivals[:lookahead]
        pack = [waiting.pop(0)]
        room, left = capacity - lengths[pack[0]], max_items - weights[pack[0]]
        waiting = that_count_for(waiting, weights, left)
        while room and waiting:
            if room * len(waiting) < 6 * sum(lengths[i] for i in waiting) or lengths[waiting[0]] > room:
                held = [lengths[i] for i in waiting]
                items_left = left // min(weights[i] for i in waiting)
                for length in closing_by_price(held, room, items_left, price):
                    item = next((i for i in waiting if lengths[i] == length), -1)
                    if item < 0:  # set aside since the subset was chosen
                        continue
                    waiting.remove(item)
                    pack.append(item)
                    left -= weights[item]
                    waiting = that_count_for(waiting, weights, left)
                break
            pack.append(waiting.pop(0))
            room, left = room - lengths[pack[-1]], left - weights[pack[-1]]
            waiting = that_count_for(waiting, weights, left)
        pack += closing_over(pack, waiting, lengths, capacity, least or lengths)
        packs.append(pack)
        arrivals = [i for i in arrivals if i not in pack]
    return packs


def closing_by_price(held: list[int], room: int, items_left: int, price: list[int]) -> list[int]:
    """The lengths in `held` that close a pack with `room` slots and `items_left` items left.

    The subset of the highest price and, of those, the most tokens. Subsets are searched depth first, longer lengths
    first; a branch is left when the most that its room could be worth with items of any lengths would not make it
    better than the best subset so far. The search ends when the best is worth as much as the room can be, or after 384
    lengths.
    """
    rises = [length for length in range(1, room + 1) if price[length] > price[length - 1]]
    most = [0] * (room + 1)  # the highest price of items of any lengths in each room
    for size in range(1, room + 1):
        most[size] = max([most[size - 1], *(most[size - length] + price[length] for length in rises if length <= size)])
    kinds = sorted({length for length in held if length <= room}, reverse=True)
    best: tuple[int, int] = (0, 0)  # price and tokens
    chosen: list[int] = []
    searched = 0
    branches: list[tuple[list[int], list[int]]] = [
        ([], list(kinds))
    ]  # the lengths of a subset, and those that may be added to it
    while branches and searched < 384 and best < (most[room], room):
        path, left = branches[-1]
        if not left:
            branches.pop()
            continue
        length = left.pop(0)
        searched += 1
        subset = [*path, length]
        tokens, worth = sum(subset), sum(price[each] for each in subset)
        if (worth + most[room - tokens], room) <= best or subset.count(length) > held.count(length):
            continue
        if (worth, tokens) > best:
            best, chosen = (worth, tokens), subset
        if len(subset) < items_left and room - tokens >= kinds[-1]:
            branches.append((subset, [each for each in [length, *left] if each <= room - tokens]))
    return chosen
