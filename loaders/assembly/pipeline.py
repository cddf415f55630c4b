"""The pipeline of an indexed loader: from the steps of an epoch to the batches of one rank and worker."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.outcomes import LeftOut, Outcomes
from patchnpack.loaders.assembly.prefetch_loop import run_batches
from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.error_policy import ErrorMonitor
from patchnpack.loaders.order.order import Pack
from patchnpack.loaders.order.rank_steps import Steps
from patchnpack.loaders.order.row_filter import RowFilter
from patchnpack.loaders.order.state import Cursor
from patchnpack.packer import PackedBatch, Plan

# B packs in a batch, W ranks, n workers


def check_rows(rows: RowFilter, context: IndexedBatchContext, monitor: ErrorMonitor) -> None:
    """Raise BadDataError if more images are bad by their headers than the policy allows."""
    first = next((context.bad_row(row, *why) for row, why in rows.bad.items()), None)
    used, lost = int(rows.mask.sum()), int((~rows.mask & ~rows.filtered).sum())
    what = "have bad headers" + (", or share their sample with such an image" if lost > len(rows.bad) else "")
    monitor.before_start(lost, lost + used, first, what)


@dataclass(frozen=True, slots=True)
class WorkerShard:
    """The batches of one of n worker processes: worker w makes the batches w, w + n, w + 2n ... of its rank.

    Attributes:
        worker: w, from 0.
        num_workers: n.
        made: batches that this worker has made already and skips now.
    """

    worker: int = 0
    num_workers: int = 1
    made: int = 0

    def has(self, number: int) -> bool:
        """Return whether this worker makes the batch of that number, counted over all workers."""
        return number % self.num_workers == self.worker and number // self.num_workers >= self.made


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """Makes the batches of one rank.

    Attributes:
        context: builds the batches.
        steps: the packs of each step, over all ranks.
        rank: the rank of this process.
        repeat: whether the next epoch follows when one ends.
        rows: which rows are used, and why the others are not.
        stats: counts batches and rows.
        monitor: judges every image.
        num_threads: decoding threads, at least 1.
        prefetch: batches made ahead of the one in use, at least 1.
    """

    context: IndexedBatchContext
    steps: Steps
    rank: int
    repeat: bool
    rows: RowFilter
    stats: Stats
    monitor: ErrorMonitor
    num_threads: int
    prefetch: int

    def run(self, begin: Cursor, worker_shard: WorkerShard) -> Iterator[PackedBatch]:
        """Yield the batches from a cursor to the end of its epoch or, with `repeat`, without end."""
        context, order = self.context, self.steps.order
        if context.reader.is_remote:
            reader = context.reader.prefetching(
                self._upcoming_shards(begin),
                behind=order.shuffle_window * order.num_streams,
                at_start=not begin.position,
            )
            context = replace(context, reader=reader)
        context = context.fresh()
        opener, stats, mixed = context.reader.opener, self.stats, order.mixed

        def count(batch: PackedBatch) -> None:
            if mixed is not None:
                for name, images in mixed.count(context.index, batch.rows[batch.image_mask].numpy()).items():
                    stats.sources[name] = stats.sources.get(name, 0) + images
            stats.cache_hits, stats.cache_misses = opener.counts()

        outcomes = Outcomes(stats, self.monitor)
        yield from run_batches(
            self._builders(context, begin, worker_shard, outcomes.left_out),
            outcomes,
            num_threads=self.num_threads,
            prefetch=self.prefetch,
            plan_ahead=True,
            on_batch=count,
            on_close=opener.close,  # a decoding thread may be waiting for a shard
        )

    def _upcoming_shards(self, begin: Cursor) -> Iterator[int]:
        """Yield the shards in the order of their use, for this epoch and, with `repeat`, the next."""
        for epoch in range(begin.epoch, begin.epoch + 1 + self.repeat):
            yield from self.steps.order.shards_in_order(epoch)

    def _builders(
        self, context: IndexedBatchContext, begin: Cursor, worker_shard: WorkerShard, left_out: LeftOut
    ) -> Iterator[BatchBuilder]:
        number = 0
        while True:
            step, made = -(-begin.position // self.steps.packs), False
            for packs, position in self._rank_packs(begin, left_out, count=worker_shard.worker == 0):
                if worker_shard.has(number):
                    yield context.builder(packs, packs[0].patch_size, epoch=begin.epoch, step=step, position=position)
                step, number, made = step + 1, number + 1, True
            if (made or not begin.position) and not self.repeat:
                return
            if not made and begin.position and not self.repeat:
                left_out.take()  # the run that used the last batch of this epoch has counted these rows
            begin = Cursor(begin.epoch + 1, 0)

    def _rank_packs(self, begin: Cursor, left_out: LeftOut, *, count: bool) -> Iterator[tuple[list[Pack], int]]:
        """Yield this rank's packs of each step and the position after it; with `count`, note the samples left out.

        A resumed epoch notes only the samples left out after the cursor: the run before counted the others. A sample is
        counted by its first row.
        """
        rank, world_size = self.rank, self.steps.world_size

        def of_rank(rows: np.ndarray) -> int:
            return int((rows % world_size == rank).sum()) if count else 0

        def note(plan: Plan) -> None:
            left_out.oversize += of_rank(plan.oversize)
            left_out.undersize += of_rank(plan.undersize)
            for reason, rows in plan.skipped_by_reason().items():
                left_out.skipped[reason] += of_rank(rows)

        def note_tail(pack: Pack) -> None:
            if pack.images is not None:
                left_out.skipped["tail"] += of_rank(pack.images.row[pack.images.sample_offsets()[:-1]])

        if count and not begin.position:
            filtered, lost, images = self.rows.counts(self.context.index, rank, world_size)
            left_out.skipped["where"] += filtered
            left_out.bad_samples += lost
            left_out.images += images
            for row, (stage, reason) in self.rows.bad.items():
                if row % world_size == rank:
                    left_out.bad.append((begin.epoch, self.context.bad_row(row, stage, reason)))
        for packs, position in self.steps.groups(begin, note, note_tail):
            yield packs[rank::world_size], position
