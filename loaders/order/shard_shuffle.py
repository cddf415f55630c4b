"""`ShardShuffle`: passes over all usable samples, shards in random order, samples shuffled inside windows of shards.

A sample is found by its first row. One image per sample, each row is a sample.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from patchnpack.loaders.index.table import Index
from patchnpack.packer import Rows
from patchnpack.packer.policies.random import Purpose, counter_hash

# n rows, S streams

Run = tuple[int, int]  # rows [low, high)


@dataclass(frozen=True, kw_only=True)
class ShardShuffle:
    """Everything that the order of samples depends on, except the number of the pass.

    A pass visits each usable sample once.

    Attributes:
        index: the images.
        usable: bool (n,), the first rows of the samples to visit; the others are bad or filtered out.
        seed: seeds all shuffles.
        shuffle: whether shards and samples are shuffled.
        window: shards inside which samples are shuffled.
    """

    index: Index
    usable: np.ndarray
    seed: int
    shuffle: bool
    window: int

    def shards(self, number: int, low: int = 0, high: int | None = None) -> np.ndarray:
        """Return the shards [low, high) in the order of a pass, int64."""
        shards = np.arange(low, len(self.index.shards) if high is None else high)
        if not self.shuffle:
            return shards
        return shards[
            np.argsort(counter_hash(Purpose.SHARD_ORDER, self.seed, number, shards.astype(np.uint64)), kind="stable")
        ]

    def streams(self, number: int, num_streams: int) -> list[list[Run]]:
        """Cut a pass over all shards, laid end to end, into S streams of equal rows (+-1); return the runs of each.

        A sample belongs to the stream that its first row is in.
        """
        shards = self.shards(number)
        low, high = self.index.starts[shards], self.index.starts[shards + 1]
        ends = np.cumsum(high - low)
        cuts = np.arange(num_streams + 1) * len(self.index) // num_streams
        streams = []
        for begin, end in pairwise(cuts):
            # On the line of all rows, a shard covers [ends - rows, ends).
            first = np.maximum(low, high - (ends - begin))
            last = np.minimum(high, high - (ends - end))
            streams.append([(int(a), int(b)) for a, b in zip(first, last, strict=True) if a < b])
        return streams

    def windows(self, runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
        """Yield the runs of each window of shards."""
        for first in range(0, len(runs), self.window):
            yield runs[first : first + self.window]

    def source_windows(self, number: int, low: int, high: int) -> Iterator[Sequence[Run]]:
        """Yield the windows of a pass over the shards [low, high)."""
        starts = self.index.starts
        return self.windows([(int(starts[i]), int(starts[i + 1])) for i in self.shards(number, low, high)])

    def rows(self, number: int, window: Sequence[Run]) -> Rows:
        """Return the rows of the usable samples of a window, in the order of a pass."""
        which = np.concatenate([np.arange(low, high) for low, high in window])
        first = which[self.usable[which]]
        rows = self.index.rows(first)
        if not self.shuffle:
            return rows
        keys = rows.row_id if rows.offsets is None else self.index.row_id(first)
        return rows.take(np.argsort(counter_hash(Purpose.ROW_ORDER, self.seed, number, keys), kind="stable"))

    def count(self, window: Sequence[Run]) -> int:
        """Return the number of usable samples of a window."""
        return sum(int(self.usable[low:high].sum()) for low, high in window)

    def num_usable(self, low: int, high: int) -> int:
        """Return the number of usable samples of the shards [low, high)."""
        return self.count([(int(self.index.starts[low]), int(self.index.starts[high]))])

    @cached_property
    def total(self) -> int:
        """Number of usable samples."""
        return int(self.usable.sum())
