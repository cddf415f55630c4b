"""The treatment of leftover slots in plain Python. Tests check that `_fill.py` equals it."""

from __future__ import annotations

import itertools


def undrop(tokens: list[int], keep: list[int], capacity: int) -> list[int]:
    """Give a pack's leftover slots back to its images, in proportion to their dropped tokens.

    `tokens` are the most that each image may hold: all its tokens, or the cap of a drop that names one. Shares are
    rounded up while slots remain.

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


def trim(least: list[int], keep: list[int], capacity: int) -> list[int]:
    """Cut a pack's tokens beyond L from its images, in proportion to what each may lose.

    Shares are rounded up while tokens remain to be cut.

    ```
    keep 7 5, least 6 4, L = 11       |11111112222|2   1 token too many; 1 and 1 may be cut
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
    cap: int,
) -> list[Option]:
    """Candidate sizes near an image's own: (keep, width, height, gw, gh, change in millionths).

    Of the sizes with equal `keep`, only the nearest is listed. No side changes by more than `max_scale`, and no grid
    grows beyond `max_tokens`. Where the policy rounds sides to whole patches ("resize"), both sides change by whole
    patches, both up or both down; otherwise the aspect is kept to the pixel, and the candidates are the sizes at which
    the number of columns or rows changes. The share of kept tokens stays the same, but an image keeps at most `cap`
    tokens, or `keep` where that is more.
    """
    (w, h), (gw, gh), unit = size, grid, patch * multiple
    max_dx, max_dy = int(w * max_scale), int(h * max_scale)
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
                for c in range((own - limit) // unit, (own + limit) // unit + 2)
                for side in (c * unit, c * unit + step)
            ]
            for own, limit in ((w, max_dx), (h, max_dy))
        )
        sizes += [(width, (2 * width * h + w) // (2 * w)) for width in columns_at]
        sizes += [((2 * height * w + h) // (2 * h), height) for height in rows_at]
    found: dict[int, Option] = {}
    for width, height in sizes:
        if edge != "resize" and (abs(width - w) > max_dx or abs(height - h) > max_dy or min(width, height) < 1):
            continue
        columns, rows = gw, gh
        if (width, height) != size:
            columns, rows = (
                (side if edge == "crop" else side + unit - 1) // unit * multiple for side in (width, height)
            )
        tokens = columns * rows
        if tokens < 1 or tokens > max(max_tokens, gw * gh):
            continue
        kept = max(1, min(tokens, max(keep, cap), (2 * keep * tokens + gw * gh) // (2 * gw * gh)))
        change = max(abs(width - w) * 1_000_000 // w, abs(height - h) * 1_000_000 // h)
        if kept not in found or change < found[kept][5]:
            found[kept] = (kept, width, height, columns, rows, change)
    return list(found.values())


def rescale(choices: list[list[Option]], capacity: int) -> list[Option]:
    """Choose an option per image so that together they fill as many of the L slots as possible.

    From the last image to the first, each takes the option with the least change that lets the others fill the rest.

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
