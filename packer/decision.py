"""What is decided from the images' token counts before packing: what "auto" stands for, and the prices of "priced"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from patchnpack.packer.binpacking.pack_lengths import is_undecided, resolve_algorithm, sample_size
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.config import Packing


def decide(
    packing: Packing, sample: Sequence[np.ndarray], counts: Sequence[np.ndarray], *, complete: bool = True
) -> Packing:
    """Return `packing` with "auto" resolved and, for "priced", the prices.

    With several patch sizes, the middle one decides the algorithm, and each has its own prices.

    Args:
        packing: the configuration.
        sample: tokens of some images, int64 (s,), in a typical order; one array per patch size.
        counts: number of images of each token count, int (at most L + 1,); one array per patch size.
        complete: whether `counts` holds all images. If the lookahead holds them, too, "auto" is "priced", which then
            follows the patterns of the whole if it can (`Packing.can_follow_patterns`): no algorithm packs better.
    """
    if not is_undecided(packing.algorithm, packing.prices):
        return packing
    if (
        packing.algorithm == "auto"
        and complete
        and packing.can_follow_patterns
        and packing.lookahead >= counts[0].sum()
    ):
        packing = packing.replace(algorithm="priced")
    middle = len(counts) // 2
    prices = Prices.of_counts(counts[middle], packing.seq_len)
    algorithm, _ = resolve_algorithm(
        packing.algorithm,
        sample[middle],
        packing.seq_len,
        max_items=packing.max_images,
        lookahead=packing.lookahead,
        prices=prices,
    )
    if algorithm != "priced":
        return packing.replace(algorithm=algorithm)
    tables = [prices if each is counts[middle] else Prices.of_counts(each, packing.seq_len) for each in counts]
    return packing.replace(algorithm=algorithm, prices=tuple(tables))


class Decision:
    """Decides from images as they arrive, after given numbers of rows.

    Args:
        packing: the configuration, whose algorithm is "auto", or "priced" without prices.
        decide_at: numbers of rows after which to decide, not before the lookahead is full.
    """

    def __init__(self, packing: Packing, decide_at: Sequence[int]) -> None:
        self._given = self._decided = packing
        # No pack is ready before the lookahead is full.
        self._decide_at = sorted({max(rows, packing.lookahead) for rows in decide_at})
        self._sample_size = sample_size(packing.lookahead)
        self._sample = [np.empty(0, np.int64) for _ in packing.patch_sizes]
        self._counts = [np.zeros(packing.seq_len + 1, np.int64) for _ in packing.patch_sizes]

    def missing(self, arrived: int) -> float:
        """Rows until the next decision, after `arrived` rows."""
        return self._decide_at[0] - arrived if self._decide_at else math.inf

    def add(self, lengths: Sequence[np.ndarray]) -> None:
        """Add the token counts of some images, int (M,), one array per patch size."""
        if self._decide_at or is_undecided(self._decided.algorithm, self._decided.prices):
            for number, each in enumerate(lengths):
                self._counts[number] += np.bincount(each, minlength=len(self._counts[number]))
                self._sample[number] = np.concatenate([self._sample[number], each])[: self._sample_size]

    def decide(self, arrived: int | None) -> Packing:
        """Return the packing as decided after `arrived` rows, from all images so far; None is the last row.

        Rows that were all skipped decide nothing, unless no others come.
        """
        self._decide_at = [count for count in self._decide_at if arrived is not None and count > arrived]
        if arrived is None or self._counts[0].any():
            self._decided = decide(self._given, self._sample, self._counts, complete=arrived is None)
        return self._decided
