"""The order of packs in an epoch, defined without ranks, threads or workers.

1. The shards are shuffled, laid end to end and cut into S streams of equal rows (+-1).
2. In each stream, rows are shuffled inside a window of shards, and packed as they come.
3. In windows of `balance` packs, each stream sorts its packs of one patch size by attention cost, cuts them into shares
   and mixes the shares, all streams alike.
4. Packs go out in blocks of one patch size; each of the S streams gives its share of every block, in turn.
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
from patchnpack.packer.plan import images_per_pack
from patchnpack.packer.policies.random import Purpose, counter_hash

# n rows, s shards, S streams


def chunks(mask: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a mask, int64, some at a time: an index may have more than memory should hold the numbers of.

    Each chunk but the last holds at least `SAMPLE`.
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
    """A pack in the order: which of a plan's it is.

    Its images are not taken out before they are asked for, so the packs that a resumed run skips cost next to nothing.

    Attributes:
        patch_size: P, in pixels.
        plan: the plan that it is of; None in the empty packs that fill short streams.
        number: which of the plan's packs.
        cost: what attention in it costs.
    """

    patch_size: int
    plan: Plan | None = None
    number: int = 0
    cost: int = 0

    @property
    def images(self) -> Images | None:
        """Its images, None if it is empty."""
        return None if self.plan is None else self.plan.pack(self.number)


@dataclass(frozen=True, kw_only=True)
class Order:
    """Everything that the order of packs depends on, but the epoch.

    Attributes:
        index: the images.
        usable: bool (n,), the rows that are planned; the others were bad or filtered out.
        packing: what a sequence looks like.
        seed: of all shuffles and draws.
        shuffle: whether shards and rows are shuffled.
        shuffle_window: shards inside which rows are shuffled.
        num_streams: S, slices that the epoch is cut into, each packed by itself.
        block: packs of a block, a multiple of S.
        mixed: how several sources are mixed; None where there is one.
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
        """The packs of an epoch in order, with the empty ones that fill short streams (S > 1).

        `on_plan` is called with each plan as it is made.
        """
        streams = [self._stream_packs(epoch, stream, on_plan) for stream in range(self.num_streams)]
        if self.num_streams == 1:
            yield from streams[0]
            return
        while True:
            block = [[next(stream, None) for _ in range(self._share)] for stream in streams]
            made = next((pack for part in block for pack in part if pack is not None), None)
            if made is None:
                return
            for part in block:
                for pack in part:
                    yield pack or Pack(made.patch_size)

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
        """The packs as they are planned."""
        for part in self.stream_plans(epoch, stream):
            on_plan(part)
            sizes, costs = part.patch_size.tolist(), part.attention_cost().tolist()
            yield from map(Pack, sizes, repeat(part), range(len(part)), costs)

    def stream_plans(self, epoch: int, stream: int) -> Iterator[Plan]:
        """The plans of one stream, a window of shards at a time."""
        planner = Planner(
            self.packing,
            seed=self.seed,
            epoch=epoch,
            start=epoch * self.num_images,
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
        """Rows of the index that are used."""
        return int(self.usable.sum())

    @property
    def _share(self) -> int:
        """Packs of a block that each stream gives."""
        return self.block // self.num_streams

    @cached_property
    def _passes(self) -> ShardShuffle:
        return ShardShuffle(
            index=self.index, usable=self.usable, seed=self.seed, shuffle=self.shuffle, window=self.shuffle_window
        )

    @property
    def num_images(self) -> int:
        """Images that are planned in an epoch."""
        return self._passes.total if self.mixed is None else sum(self.mixed.images)

    @cached_property
    def _images_per_pack(self) -> tuple[float, ...]:
        rows = next(chunks(self.usable), np.zeros(0, np.int64))[:SAMPLE]
        return images_per_pack(self.index.rows(rows), self.packing, seed=self.seed)

    def stream_rows(self, epoch: int, stream: int) -> Iterator[Rows]:
        """The usable rows of one stream, a window at a time."""
        if self.mixed is not None:
            yield from self.mixed.rows(self._passes, epoch, stream, self.num_streams)
            return
        for window in self._passes.windows(self._passes.streams(epoch, self.num_streams)[stream]):
            yield self._passes.rows(epoch, window)

    def planned_rows(self, epoch: int) -> Rows:
        """Return the usable rows of an epoch in this order, stream by stream."""
        windows = [rows for stream in range(self.num_streams) for rows in self.stream_rows(epoch, stream)]
        return Rows.concatenate(windows or [Rows.of_sizes([], [])])

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
        """The shards about as they are come to; one that is come to again comes again."""
        if self.mixed is not None:
            yield from self.mixed.shards_in_order(self._passes, epoch)
            return
        for runs in zip_longest(*self._passes.streams(epoch, self.num_streams)):
            yield from (int(self.index.shard_of(run[0])) for run in runs if run is not None)

    def stream_counts(self, epoch: int) -> list[int]:
        """Packs in each stream, from an integer-only planning pass."""
        return [sum(map(len, self.stream_plans(epoch, stream))) for stream in range(self.num_streams)]

    def positions(self, epoch: int) -> tuple[int, int]:
        """Packs of the epoch in all, empty ones included, and those before the first that is empty."""
        counts = self.stream_counts(epoch)
        if self.num_streams == 1:
            return counts[0], counts[0]
        share = self._share
        first_empty = min(n // share * self.block + s * share + n % share for s, n in enumerate(counts))
        return -(-max(counts) // share) * self.block, first_empty
