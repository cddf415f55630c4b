"""`ShardShuffle`: each usable row once per pass, shards in random order, rows shuffled inside windows of shards."""

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

Run = tuple[int, int]  # rows from the first to the one before the second


@dataclass(frozen=True, kw_only=True)
class ShardShuffle:
    """What the order of rows depends on, but the number of the pass.

    Attributes:
        index: the images.
        usable: bool (n,), the rows that come; the others were bad or filtered out.
        seed: of all shuffles.
        shuffle: whether shards and rows are shuffled.
        window: shards inside which rows are shuffled.
    """

    index: Index
    usable: np.ndarray
    seed: int
    shuffle: bool
    window: int

    def shards(self, number: int, low: int = 0, high: int | None = None) -> np.ndarray:
        """The shards of a pass in order, int64: those from `low` to `high`."""
        shards = np.arange(low, len(self.index.shards) if high is None else high)
        if not self.shuffle:
            return shards
        return shards[
            np.argsort(counter_hash(Purpose.SHARD_ORDER, self.seed, number, shards.astype(np.uint64)), kind="stable")
        ]

    def streams(self, number: int, num_streams: int) -> list[list[Run]]:
        """A pass over all shards, laid end to end and cut into S streams of equal rows (+-1): the runs of each."""
        shards = self.shards(number)
        low, high = self.index.starts[shards], self.index.starts[shards + 1]
        ends = np.cumsum(high - low)
        cuts = np.arange(num_streams + 1) * len(self.index) // num_streams
        streams = []
        for begin, end in pairwise(cuts):
            # Where the shard lies on the line of all rows is [ends - rows, ends).
            first = np.maximum(low, high - (ends - begin))
            last = np.minimum(high, high - (ends - end))
            streams.append([(int(a), int(b)) for a, b in zip(first, last, strict=True) if a < b])
        return streams

    def windows(self, runs: Sequence[Run]) -> Iterator[Sequence[Run]]:
        """The runs of each window of shards."""
        for first in range(0, len(runs), self.window):
            yield runs[first : first + self.window]

    def source_windows(self, number: int, low: int, high: int) -> Iterator[Sequence[Run]]:
        """The windows of a pass over the shards from `low` to `high`."""
        starts = self.index.starts
        return self.windows([(int(starts[i]), int(starts[i + 1])) for i in self.shards(number, low, high)])

    def rows(self, number: int, window: Sequence[Run]) -> Rows:
        """The usable rows of a window of a pass, in order."""
        which = np.concatenate([np.arange(low, high) for low, high in window])
        rows = self.index.rows(which[self.usable[which]])
        if not self.shuffle:
            return rows
        return rows.take(np.argsort(counter_hash(Purpose.ROW_ORDER, self.seed, number, rows.row_id), kind="stable"))

    def count(self, window: Sequence[Run]) -> int:
        """The usable rows of a window."""
        return sum(int(self.usable[low:high].sum()) for low, high in window)

    def num_usable(self, low: int, high: int) -> int:
        """The usable rows of the shards from `low` to `high`."""
        return self.count([(int(self.index.starts[low]), int(self.index.starts[high]))])

    @cached_property
    def total(self) -> int:
        """All usable rows."""
        return int(self.usable.sum())
