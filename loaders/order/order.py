"""The order of packs in an epoch, defined without ranks, threads or workers.

1. The shards are shuffled, laid end to end and cut into S streams of equal rows (+-1).
2. In each stream, samples are shuffled inside a window of shards and packed in that order.
3. In windows of `balance` packs, each stream sorts its packs of one patch size by attention cost, cuts them into shares
   and mixes the shares. All streams mix them alike.
4. Packs are handed out in blocks of one patch size. The S streams take turns: each contributes its share of a block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import count, islice, repeat, zip_longest
from typing import NamedTuple

import numpy as np

from patchnpack.loaders.index.table import Index
from patchnpack.loaders.order.first_invalid_row import naming_first_invalid_row
from patchnpack.loaders.order.mixture import Mixed
from patchnpack.loaders.order.shard_shuffle import ShardShuffle
from patchnpack.packer import Images, Packing, Plan, Planner, Rows
from patchnpack.packer.binpacking.balance import window_of, window_order
from patchnpack.packer.binpacking.pack_lengths import SAMPLE
from patchnpack.packer.planning.planner import images_per_pack
from patchnpack.packer.policies.random import Purpose, counter_hash

# n rows, s shards, S streams


def chunks(mask: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of a mask, int64, in chunks: the row numbers of a large index would take too much memory.

    Each chunk except the last holds at least `SAMPLE` rows.
    """
    begin, size = 0, 1 << 18
    while begin < len(mask):
        rows = np.flatnonzero(mask[begin : begin + size])
        if len(rows) < SAMPLE and begin + size < len(mask):
            size *= 2
            continue
        if len(rows):
            yield rows + begin
        begin, size = begin + size, 1 << 18


class Pack(NamedTuple):
    """A pack of the order, as a reference to its plan.

    Its images are taken from the plan only when asked for, so packs that a resumed run skips cost almost nothing.

    Attributes:
        patch_size: P, in pixels.
        plan: the plan that holds the pack; None for the empty packs that fill short streams.
        number: the number of the pack in its plan.
        cost: the attention cost of the pack.
    """

    patch_size: int
    plan: Plan | None = None
    number: int = 0
    cost: int = 0

    @property
    def images(self) -> Images | None:
        """The images of the pack; None if it is empty."""
        return None if self.plan is None else self.plan.pack(self.number)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Everything that the order of packs depends on, except the epoch.

    Attributes:
        index: the images.
        usable: bool (n,), the first rows of the samples to plan; the others are bad or filtered out. Where each row is
            a sample of one image, the rows to plan.
        packing: what a sequence looks like.
        seed: seeds all shuffles and draws.
        shuffle: whether shards and samples are shuffled.
        shuffle_window: shards inside which samples are shuffled.
        num_streams: S, slices of the epoch, each packed separately.
        block: packs per block, a multiple of S.
        mixed: how several sources are mixed; None for a single source.
    """

    index: Index
    usable: np.ndarray
    packing: Packing
    seed: int
    shuffle: bool
    shuffle_window: int
    num_streams: int
    block: int
    mixed: Mixed | None = None

    def packs(self, epoch: int, on_plan: Callable[[Plan], None] = lambda plan: None) -> Iterator[Pack]:
        """Yield the packs of an epoch in order, including the empty ones that fill short streams (S > 1).

        `on_plan` is called with each plan as it is made.
        """
        streams = [self._stream_packs(epoch, stream, on_plan) for stream in range(self.num_streams)]
        if self.num_streams == 1:
            yield from streams[0]
            return
        while True:
            block = [[next(stream, None) for _ in range(self._share)] for stream in streams]
            first = next((pack for share in block for pack in share if pack is not None), None)
            if first is None:
                return
            for share in block:
                for pack in share:
                    yield pack or Pack(first.patch_size)

    def _stream_packs(self, epoch: int, stream: int, on_plan: Callable[[Plan], None]) -> Iterator[Pack]:
        packs, share = self._planned_packs(epoch, stream, on_plan), self._share
        if not (self.shuffle and self.packing.balance):
            yield from packs
            return
        window = window_of(self.packing.balance, share)
        for number in count():
            group = list(islice(packs, window))
            if not group:
                return
            cost = np.array([pack.cost for pack in group])
            size = np.array([pack.patch_size for pack in group])
            counters = np.arange(window // share, dtype=np.uint64) + np.uint64(number << 32)
            drawn = counter_hash(Purpose.BALANCE, self.seed, epoch, counters)
            yield from (group[i] for i in window_order(cost, size, share, drawn))

    def _planned_packs(self, epoch: int, stream: int, on_plan: Callable[[Plan], None]) -> Iterator[Pack]:
        """Yield the packs in the order in which they are planned."""
        for plan in self.stream_plans(epoch, stream):
            on_plan(plan)
            sizes, costs = plan.patch_size.tolist(), plan.attention_cost().tolist()
            yield from map(Pack, sizes, repeat(plan), range(len(plan)), costs)

    def stream_plans(self, epoch: int, stream: int) -> Iterator[Plan]:
        """Yield the plans of one stream, one per window of shards and a last one."""
        planner = Planner(
            self.packing,
            seed=self.seed,
            epoch=epoch,
            start=epoch * self.num_samples,
            stream=stream,
            num_streams=self.num_streams,
            share=self._share,
            images_per_pack=self._images_per_pack,
        )
        for rows in self.stream_rows(epoch, stream):
            with naming_first_invalid_row(self.index, rows, self.packing, seed=self.seed, epoch=epoch):
                plan = planner.add(rows)
            yield plan
        yield planner.finish()

    @cached_property
    def used(self) -> int:
        """Number of samples of the index that are used."""
        return int(self.usable.sum())

    @property
    def _share(self) -> int:
        """Packs that each stream contributes to a block."""
        return self.block // self.num_streams

    @cached_property
    def _passes(self) -> ShardShuffle:
        return ShardShuffle(
            index=self.index, usable=self.usable, seed=self.seed, shuffle=self.shuffle, window=self.shuffle_window
        )

    @property
    def num_samples(self) -> int:
        """Samples that are planned per epoch."""
        return self._passes.total if self.mixed is None else sum(self.mixed.images)

    @cached_property
    def _images_per_pack(self) -> tuple[float, ...]:
        rows = next(chunks(self.usable), np.zeros(0, np.int64))[:SAMPLE]
        return images_per_pack(self.index.rows(rows), self.packing, seed=self.seed)

    def stream_rows(self, epoch: int, stream: int) -> Iterator[Rows]:
        """Yield the rows of the usable samples of one stream, a window of shards at a time."""
        if self.mixed is not None:
            yield from self.mixed.rows(self._passes, epoch, stream, self.num_streams)
            return
        for window in self._passes.windows(self._passes.streams(epoch, self.num_streams)[stream]):
            yield self._passes.rows(epoch, window)

    def planned_rows(self, epoch: int) -> Rows:
        """Return the rows of the usable samples of an epoch in this order, stream by stream."""
        windows = [rows for stream in range(self.num_streams) for rows in self.stream_rows(epoch, stream)]
        return Rows.concatenate(windows or [self.index.rows(np.zeros(0, np.int64))])

    def planning_order(self) -> Order:
        """Return the order of rows in which packs are planned; another one where they were planned before."""
        return self

    def planned_epoch(self, epoch: int) -> int:
        """Return the epoch whose draws an epoch's packs are planned with."""
        return epoch

    def stored_plan(self, epoch: int) -> Plan | None:
        """Return the plan of an epoch where it was made before, None where it is made as it is needed."""
        return None

    def shards_in_order(self, epoch: int) -> Iterator[int]:
        """Yield the shards in approximate access order; revisited shards repeat."""
        if self.mixed is not None:
            yield from self.mixed.shards_in_order(self._passes, epoch)
            return
        for runs in zip_longest(*self._passes.streams(epoch, self.num_streams)):
            yield from (int(self.index.shard_of(run[0])) for run in runs if run is not None)

    def stream_counts(self, epoch: int) -> list[int]:
        """Return the number of packs of each stream, from an integer-only planning pass."""
        return [sum(map(len, self.stream_plans(epoch, stream))) for stream in range(self.num_streams)]

    def positions(self, epoch: int) -> tuple[int, int]:
        """Return the number of packs of the epoch, empty ones included, and of those before the first empty one."""
        counts = self.stream_counts(epoch)
        if self.num_streams == 1:
            return counts[0], counts[0]
        share = self._share
        first_empty = min(n // share * self.block + s * share + n % share for s, n in enumerate(counts))
        return -(-max(counts) // share) * self.block, first_empty
