"""`Prices`: what each length is worth in an optimal packing, as whole numbers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from patchnpack.packer.binpacking.packers import _priced
from patchnpack.packer.binpacking.pricing.cutting_stock import GROUPS, group_counts, solve_cutting_stock

# L capacity of a pack

UNIT = 1024  # a pack is worth this much
_STEPS = 16_384  # the capacity in steps, at most: the time to solve grows with it


@dataclass(frozen=True, slots=True)
class Prices:
    """Price of each length, in units of 1/1024 of a pack.

    The prices are the dual values of the cutting-stock problem (Gilmore and Gomory 1961): no set of items that fits in
    a pack is worth more than 1,024, and the sum of all prices is the least number of packs that could hold the items.
    Each pack that is worth less than 1,024 therefore adds its shortfall to the number of packs.

    Attributes:
        lengths: ascending; a length from `lengths[i]` to below `lengths[i + 1]` has price `values[i]`, a shorter one
            than `lengths[0]` has price 0.
        values: ascending, from 1 to 1,024.

    Raises:
        ValueError: the lengths or values do not ascend, or are out of range.

    >>> Prices.of_counts(np.bincount([4, 4, 4, 4, 3, 3]), 10)  # a pack holds two 4s, or one 4 and two 3s
    Prices(lengths=(3, 4), values=(256, 512))
    """

    lengths: tuple[int, ...]
    values: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, most in (("lengths", None), ("values", UNIT)):
            numbers = getattr(self, name)
            if not isinstance(numbers, tuple) or not all(type(number) is int for number in numbers):
                raise ValueError(f"{name} is {numbers!r}; it must be a tuple of whole numbers")
            if any(low >= high for low, high in zip((0, *numbers), numbers, strict=False)):
                raise ValueError(f"{name} is {numbers!r}; it must ascend, from at least 1")
            if most is not None and numbers and numbers[-1] > most:
                raise ValueError(f"{name} ends with {numbers[-1]}; a price is at most {most}, the worth of a pack")
        if len(self.lengths) != len(self.values):
            raise ValueError(
                f"there are {len(self.lengths)} lengths and {len(self.values)} values; give one value each"
            )

    @classmethod
    def of_counts(cls, counts: np.ndarray, capacity: int, groups: int = GROUPS) -> Prices:
        """Return the prices for packs of `capacity` slots.

        Rare lengths are priced in groups where there are many distinct ones, and all lengths in steps where the
        capacity is over 16,384, so that this takes about a second at most.

        Args:
            counts: int (at most L + 1,), number of items of each length.
            capacity: L.
            groups: distinct lengths that are priced, at most.
        """
        step = -(-capacity // _STEPS)
        if step > 1:
            padded = np.concatenate([counts, np.zeros(-len(counts) % step, counts.dtype)])
            counts = padded.reshape(-1, step).sum(1)
            counts[1:2] += counts[:1]  # items shorter than a step
            counts[:1] = 0
        lengths, counts = group_counts(counts, groups)
        solved = solve_cutting_stock(lengths, counts, capacity // step)
        # A longer item is worth at least as much as a shorter one.
        values = np.maximum.accumulate(np.floor(solved.prices * UNIT + 1e-6).astype(np.int64))
        rises = np.flatnonzero(np.diff(values, prepend=0))
        return cls(tuple((lengths[rises] * step).tolist()), tuple(values[rises].tolist()))


@lru_cache(maxsize=32)
def price_table(prices: Prices, capacity: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the value of each length and the most value in each room, int64 (L + 1,), as `_priced.priced` takes them.

    See `_priced.price_table`.
    """
    value, most = np.empty(capacity + 1, np.int64), np.empty(capacity + 1, np.int64)
    lengths, values = (np.array(numbers, np.int64) for numbers in (prices.lengths, prices.values))
    within = lengths <= capacity
    _priced.price_table(lengths[within], values[within], capacity, value, most)
    for table in (value, most):
        table.flags.writeable = False
    return value, most
