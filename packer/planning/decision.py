"""What is decided from the images' token counts before packing: what "auto" stands for, and the prices of "priced"."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from patchnpack.packer.binpacking.pack_lengths import is_undecided, resolve_algorithm, sample_size
from patchnpack.packer.binpacking.pricing.prices import Prices
from patchnpack.packer.config import Packing


def decide(
    packing: Packing,
    sample: Sequence[np.ndarray],
    counts: Sequence[np.ndarray],
    *,
    complete: bool = True,
    images: np.ndarray | None = None,
) -> Packing:
    """Return `packing` with "auto" resolved and, for "priced", the prices.

    With several patch sizes, the middle one decides the algorithm, and each has its own prices.

    Args:
        packing: the configuration.
        sample: tokens of some samples, int64 (s,), in a typical order; one array per patch size.
        counts: number of samples of each token count, int (at most L + 1,); one array per patch size.
        images: number of images of each sample in `sample`, int64 (s,); None where it is 1.
        complete: whether `counts` holds all samples. If the lookahead holds them, too, "auto" is "priced", which then
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
        counts=images,
    )
    if algorithm != "priced":
        return packing.replace(algorithm=algorithm)
    tables = [prices if each is counts[middle] else Prices.of_counts(each, packing.seq_len) for each in counts]
    return packing.replace(algorithm=algorithm, prices=tuple(tables))


class Decision:
    """Decides from samples as they arrive, after given numbers of them.

    Args:
        packing: the configuration, whose algorithm is "auto", or "priced" without prices.
        decide_at: numbers of samples after which to decide, not before the lookahead is full.
    """

    def __init__(self, packing: Packing, decide_at: Sequence[int]) -> None:
        self._given = self._decided = packing
        # No pack is ready before the lookahead is full.
        self._decide_at = sorted({max(samples, packing.lookahead) for samples in decide_at})
        self._sample_size = sample_size(packing.lookahead)
        self._sample = [np.empty(0, np.int64) for _ in packing.patch_sizes]
        self._images: np.ndarray | None = None  # of the samples in `_sample`
        self._counts = [np.zeros(packing.seq_len + 1, np.int64) for _ in packing.patch_sizes]

    def missing(self, arrived: int) -> float:
        """Samples until the next decision, after `arrived` samples."""
        return self._decide_at[0] - arrived if self._decide_at else math.inf

    def add(self, lengths: Sequence[np.ndarray], images: np.ndarray | None = None) -> None:
        """Add the token counts of some samples, int (n,), one array per patch size, and their numbers of images.

        `images` (n,) is None where each is 1.
        """
        if self._decide_at or is_undecided(self._decided.algorithm, self._decided.prices):
            if images is None and self._images is not None:
                images = np.ones(len(lengths[0]), np.int64)
            if images is not None:
                held = np.ones(len(self._sample[0]), np.int64) if self._images is None else self._images
                self._images = np.concatenate([held, images])[: self._sample_size]
            for number, each in enumerate(lengths):
                self._counts[number] += np.bincount(each, minlength=len(self._counts[number]))
                self._sample[number] = np.concatenate([self._sample[number], each])[: self._sample_size]

    def decide(self, arrived: int | None) -> Packing:
        """Return the packing as decided after `arrived` samples, from all so far; None is after the last one.

        Samples that were all skipped decide nothing, unless no others come.
        """
        self._decide_at = [count for count in self._decide_at if arrived is not None and count > arrived]
        if arrived is None or self._counts[0].any():
            self._decided = decide(
                self._given, self._sample, self._counts, complete=arrived is None, images=self._images
            )
        return self._decided
