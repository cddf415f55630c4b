"""The way from steps to batches: drafts are made ahead, decoded by threads, and handed out in order."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np

from patchnpack.loaders.assembly.batch_builder import DecodedBatchBuilder
from patchnpack.loaders.assembly.decode_pool import DecodePool
from patchnpack.loaders.assembly.samples import IndexedBatchContext
from patchnpack.loaders.assembly.stats import Stats, Ticker
from patchnpack.loaders.errors import BadRow, ErrorMonitor, StallError
from patchnpack.loaders.order.order import Pack
from patchnpack.loaders.order.state import Cursor
from patchnpack.loaders.order.steps import Steps
from patchnpack.loaders.packs.patch_store import StoredBatchBuilder, StoredBatchContext
from patchnpack.packer import PackedBatch, Plan

# B packs in a batch, W ranks, n workers


@dataclass(frozen=True, slots=True)
class WorkerShard:
    """Which of n worker processes this is: worker w makes the batches w, w + n, w + 2n ... of its rank.

    Attributes:
        worker: w, from 0.
        num_workers: n.
        made: batches that it has made before, and leaves out now.
    """

    worker: int = 0
    num_workers: int = 1
    made: int = 0

    def has(self, number: int) -> bool:
        """Whether the batch of that number, counted over all workers, is one to make."""
        return number % self.num_workers == self.worker and number // self.num_workers >= self.made


@dataclass(slots=True)
class _LeftOut:
    """Rows that come into no batch, until the next batch is handed out and they are counted with it."""

    oversize: int = 0
    skipped: Counter[str] = field(default_factory=Counter)
    bad: list[tuple[int, BadRow]] = field(default_factory=list)

    def taken(self) -> _LeftOut:
        """What has been noted so far; from here on it is noted anew."""
        noted = _LeftOut(self.oversize, self.skipped, self.bad)
        self.oversize, self.skipped, self.bad = 0, Counter(), []
        return noted


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """What the batches of one rank are made of.

    Attributes:
        sources: of the images.
        steps: of all ranks.
        rank: which rank this is.
        repeat: whether epoch follows epoch.
        filtered: bool (n,), the rows that `where` leaves out.
        bad: rows that cannot be used, and (stage, reason).
        stats: where all is counted.
        monitor: sees every image.
        num_threads: that decode.
        prefetch: batches made ahead.
    """

    sources: IndexedBatchContext
    steps: Steps
    rank: int
    repeat: bool
    filtered: np.ndarray
    bad: Mapping[int, tuple[str, str]]
    stats: Stats
    monitor: ErrorMonitor
    num_threads: int
    prefetch: int

    def run(self, begin: Cursor, part: WorkerShard) -> Iterator[PackedBatch]:
        """The batches from a place on, to the end of its epoch or, if they repeat, for ever."""
        sources = self.sources
        if sources.reader.is_remote:
            sources = replace(
                sources,
                reader=sources.reader.prefetching(
                    self._coming(begin),
                    behind=self.steps.order.shuffle_window * self.steps.order.num_streams,
                    at_start=not begin.position,
                ),
            )
        if isinstance(sources, StoredBatchContext):
            sources = sources.fresh()
        pool, patience = DecodePool(self.num_threads), None
        left_out = _LeftOut()
        drafts = self._drafts(sources, begin, part, left_out)
        under_way: deque[tuple[DecodedBatchBuilder | StoredBatchBuilder, _LeftOut]] = deque()

        def start(count: int) -> None:
            for draft in islice(drafts, count):
                pool.submit(draft, draft.num_parts)
                under_way.append((draft, left_out.taken()))

        ticker = Ticker(self.stats)
        try:
            began = time.perf_counter()
            start(self.prefetch)
            while under_way:
                draft, beside = under_way.popleft()
                waiting = time.perf_counter()
                batch = draft.finish()
                now = time.perf_counter()
                self._count_left_out(beside)
                self._count(batch, draft, waited=now - waiting, ran=now - began)
                self.stats.cache_hits, self.stats.cache_misses = sources.reader.opener.counts()
                began = now
                ticker.tick(sum(other.is_done for other, _ in under_way), len(under_way))
                start(1)
                if not under_way:  # no batch follows whose rows these would be counted with
                    self._count_left_out(left_out.taken())
                yield batch
                del batch, draft
            self._count_left_out(left_out)
        except StallError:
            patience = 0.0  # the thread that is stuck would not end
            raise
        finally:
            sources.reader.opener.close()  # first: a decoding thread may be waiting for a shard
            pool.close(patience)

    def _coming(self, begin: Cursor) -> Iterator[int]:
        """The shards in the order of their use, of the epoch that begins and, if epochs repeat, of the next."""
        for epoch in range(begin.epoch, begin.epoch + 1 + self.repeat):
            yield from self.steps.order.shards_in_order(epoch)

    def _drafts(
        self, sources: IndexedBatchContext, begin: Cursor, part: WorkerShard, left_out: _LeftOut
    ) -> Iterator[DecodedBatchBuilder | StoredBatchBuilder]:
        number = 0
        while True:
            step, made = -(-begin.position // self.steps.packs), False
            for packs, position in self._mine(begin, left_out, count=part.worker == 0):
                if part.has(number):
                    at = {"epoch": begin.epoch, "step": step, "position": position}
                    if isinstance(sources, StoredBatchContext):
                        yield StoredBatchBuilder(sources, packs, packs[0].patch_size, **at)
                    else:
                        yield DecodedBatchBuilder(sources, [pack.images for pack in packs], packs[0].patch_size, **at)
                step, number, made = step + 1, number + 1, True
            if (made or not begin.position) and not self.repeat:
                return
            if not made and begin.position and not self.repeat:
                left_out.taken()  # the run that used this epoch's last batch has counted these
            begin = Cursor(begin.epoch + 1, 0)

    def _mine(self, begin: Cursor, left_out: _LeftOut, *, count: bool) -> Iterator[tuple[list[Pack], int]]:
        """This rank's packs of each step, and the position behind it; with `count`, what is left out is noted.

        A resumed epoch notes what the run before had not counted: what it comes to behind the place where it begins.
        """
        rank, world_size = self.rank, self.steps.world_size

        def mine(rows: np.ndarray) -> int:
            return int((rows % world_size == rank).sum()) if count else 0

        def note(plan: Plan) -> None:
            left_out.oversize += mine(plan.oversize)
            left_out.skipped["oversize"] += mine(plan.skipped)

        def note_tail(pack: Pack) -> None:
            if pack.images is not None:
                left_out.skipped["tail"] += mine(pack.images.row)

        if count and not begin.position:
            left_out.skipped["where"] += int(self.filtered[rank::world_size].sum())
            for row, (stage, reason) in self.bad.items():
                if row % world_size == rank:
                    left_out.bad.append((begin.epoch, self.sources.bad_row(row, stage, reason)))
        for packs, position in self.steps.groups(begin, note, note_tail):
            yield packs[rank::world_size], position

    def _count_left_out(self, left_out: _LeftOut) -> None:
        self.stats.oversize += left_out.oversize
        for reason, count in left_out.skipped.items():
            self.stats.skipped[reason] += count
        for epoch, bad in left_out.bad:
            self._add_bad(bad, epoch)

    def _add_bad(self, bad: BadRow, epoch: int) -> None:
        self.stats.add_bad(bad)
        self.monitor.quarantine(bad, epoch)

    def _count(
        self, batch: PackedBatch, draft: DecodedBatchBuilder | StoredBatchBuilder, *, waited: float, ran: float
    ) -> None:
        self.stats.add_batch(
            batch, without_label=draft.without_label, truncated=draft.truncated, waited=waited, ran=ran
        )
        if (mixed := self.steps.order.mixed) is not None:
            for name, images in mixed.count(self.sources.index, batch.rows[batch.image_mask].numpy()).items():
                self.stats.sources[name] = self.stats.sources.get(name, 0) + images
        for _, bad in draft.bad:
            self._add_bad(bad, batch.epoch)
        self.monitor.record(draft.num_images, draft.bad)
