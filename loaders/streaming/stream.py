"""A stream: samples are planned as they arrive and become batches, without an index."""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.builders.sample_batch_builder import builder_of
from patchnpack.loaders.assembly.prefetch_loop import run_batches
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.error_policy import ErrorMonitor, ErrorPolicy
from patchnpack.loaders.imaging.user_decode import Decode, UserFormats
from patchnpack.loaders.order.first_invalid_row import first_invalid_row
from patchnpack.loaders.process import cpu_share, process_rank
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.sample_rule import SampleRule
from patchnpack.loaders.streaming.batch_samples import StreamBatchContext, rows_of
from patchnpack.loaders.streaming.grouping import Group, Grouping
from patchnpack.loaders.streaming.outcomes import NOTHING, StreamOutcomes, of_bad
from patchnpack.loaders.streaming.progress import Progress
from patchnpack.loaders.streaming.samples import NoImage, Sample, SampleReader
from patchnpack.packer import Images, PackedBatch, Packing, Plan, Planner, Rows
from patchnpack.packer.planning.planner import images_per_pack

# B packs in a batch

_CHUNK = 16  # samples planned together: planning them one by one would cost more than reading their headers
_DECIDE_AT = (1024, 4096, 16_384, 65_536)  # samples after which "auto" and the prices of "priced" are decided again

_log = logging.getLogger("patchnpack")


class Stream:
    """Makes the batches of a stream; for the arguments see `pack_stream`.

    Nothing here refers to the generator that `batches` returns, so a forgotten generator closes and its threads end.
    """

    def __init__(
        self,
        *,
        samples: Iterable[Any],
        reader: SampleReader,
        rule: SampleRule | None,
        packing: Packing,
        batch_size: int,
        decode: Decode | None,
        formats: UserFormats,
        transform: Transform | None,
        seed: int,
        drop_last: bool,
        num_threads: int | None,
        prefetch: int,
        stats: Stats,
        errors: ErrorPolicy,
        progress: Progress | None,
    ) -> None:
        self._samples, self._reader, self._packing, self._batch_size = samples, reader, packing, batch_size
        self._decode, self._formats, self._transform = decode, formats, transform
        self._seed, self._drop_last = seed, drop_last
        self._num_threads, self._prefetch = num_threads, prefetch
        self._errors, self._progress = errors, progress
        on_bad = None if progress is None else progress.use
        self._outcomes = StreamOutcomes(stats, ErrorMonitor(errors), on_bad)
        self._buffers = BufferPool(keep=prefetch + 2)
        self._grouping, self._several = Grouping(rule), rule is not None
        self._waiting: dict[int, tuple[Group, Sample]] = {}  # by row, with the group that the sample is of
        self._step = self._position = 0  # batches and packs before the next one
        self._number, self._count = 0, 1  # which of how many streams that train together this is

    def batches(self) -> Generator[PackedBatch, None, None]:
        """Yield the batches, decoded ahead by threads or, without threads, in the caller's thread on demand."""
        worker, (rank, world_size) = get_worker_info(), process_rank()
        worker_id, num_workers = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._number, self._count = rank * num_workers + worker_id, world_size * num_workers
        if self._progress is not None:
            self._reader.begin(self._progress.row)
            self._outcomes.begin(self._progress.row, self._progress.step)
            self._step, self._position = self._progress.step, self._progress.position
        num_threads = self._num_threads
        if num_threads is None:
            num_threads = cpu_share() if worker is None else 0
        yield from run_batches(self._builders(), self._outcomes, num_threads=num_threads, prefetch=self._prefetch)
        total = self._outcomes.stats
        samples = f" of {total.samples} samples" if self._several else ""
        _log.info(
            "the stream ended: %d images%s in %d packs, %d bad; left out: %d oversize, %d undersize, %d at the end, %d "
            "without image%s",
            *(total.images, samples, total.packs, total.bad_images),
            *(total.skipped[reason] for reason in ("oversize", "undersize", "tail")),
            *(total.without_image, total.oddities()),
        )

    def _builders(self) -> Iterator[BatchBuilder]:
        """Yield the builder of each batch; with `PatchSizes`, all packs of a batch have one patch size."""
        group: list[Images] = []
        patch_size = 0
        for patch_size, pack in self._packs():
            group.append(pack)
            if len(group) == self._batch_size:
                yield self._builder(group, patch_size)
                group = []
        if group and not self._drop_last:
            yield self._builder(group, patch_size)
        elif group:
            images = Images.concatenate(group)
            self._leave_out(images.row[images.sample_offsets()[:-1]], "tail")

    def _builder(self, packs: Sequence[Images], patch_size: int) -> BatchBuilder:
        images = Images.concatenate(packs)
        rows = images.row.tolist()
        waiting = [self._waiting[row] for row in rows]
        groups = [waiting[i][0] for i in images.sample_offsets()[:-1].tolist()]
        context = StreamBatchContext(
            packing=self._packing,
            labels=self._reader.labels(),
            extras=self._reader.extras,
            transform=self._transform,
            seed=self._seed,
            buffers=self._buffers,
            errors=self._errors,
            user_decode=self._decode,
            formats=self._formats,
            batch_samples=waiting,
            all_pages=self._reader.all_pages,
        )
        self._outcomes.expect(self._step, rows, groups)
        for group in groups:
            self._use(group)
        step, self._step = self._step, self._step + 1
        self._position += self._batch_size
        counts = [*map(len, packs), *[0] * (self._batch_size - len(packs))]
        return builder_of(
            context,
            images,
            counts,
            patch_size,
            epoch=0,
            step=step,
            position=self._position,
        )

    def _use(self, group: Group) -> None:
        """Note a group that the next batch uses, or that is left out before it; it waits no longer."""
        rows = group.rows()
        for row in rows:
            del self._waiting[row]
        if self._progress is not None:
            self._progress.use(rows, self._step)

    def _leave_out(self, rows: np.ndarray, reason: str) -> None:
        """Leave out the groups that these rows are of."""
        self._outcomes.left_out.skipped[reason] += len(rows)
        for row in rows.tolist():
            group = self._waiting[row][0]
            self._use(group)
            for sample in group.samples:
                self._outcomes.record(sample.row, of_bad(sample.bad))

    def _packs(self) -> Iterator[tuple[int, Images]]:
        """Yield the patch size and the images of each pack as soon as no later sample can change it."""
        planner = None
        for rows in self._arrivals():
            with self._naming_samples(rows):
                if planner is None:
                    planner = self._planner(rows)
                plan = planner.add(rows)
            yield from self._planned(plan)
        if planner is not None:
            yield from self._planned(planner.finish())

    def _planned(self, plan: Plan) -> Iterator[tuple[int, Images]]:
        self._outcomes.left_out.oversize += len(plan.oversize)
        self._outcomes.left_out.undersize += len(plan.undersize)
        for reason, rows in plan.skipped_by_reason().items():
            self._leave_out(rows, reason)
        for number, patch_size in enumerate(plan.patch_size.tolist()):
            yield patch_size, plan.pack(number)

    def _planner(self, first: Rows) -> Planner:
        """Return the planner; the samples seen so far settle what an index would settle from all images."""
        return Planner(
            self._packing,
            seed=self._seed,
            start=0 if self._progress is None else self._count * self._progress.seen,
            stream=self._number,
            num_streams=self._count,
            share=self._batch_size,
            images_per_pack=images_per_pack(first, self._packing, seed=self._seed),
            decide_at=[len(first), *(rows for rows in _DECIDE_AT if rows > len(first))],
        )

    def _arrivals(self) -> Iterator[Rows]:
        """Yield the rows to plan next: first `lookahead` samples, which the packers wait for, then a few at a time."""
        arrived: list[Group] = []
        wanted = self._packing.lookahead
        for group in self._groups():
            if group.bad and not self._keep_without_bad(group):
                continue
            for sample in group.samples:
                self._waiting[sample.row] = group, sample
            arrived.append(group)
            if len(arrived) == wanted:
                rows, wanted = rows_of(arrived, self._number, several=self._several), _CHUNK
                arrived.clear()  # only `_waiting` may refer to samples
                yield rows
        self._reader.end()
        if arrived:
            rows = rows_of(arrived, self._number, several=self._several)
            arrived.clear()
            yield rows

    def _groups(self) -> Iterator[Group]:
        """Yield the groups of the samples that arrive and have an image, those that a state says are used left out."""
        progress = self._progress
        for sample in self._samples if progress is None else progress.samples((self._number, self._count)):
            read = self._reader.read(sample)
            if progress is not None and not progress.arrive(read):  # it was used before the state was saved
                self._outcomes.record(read.row, NOTHING)
                group = None if isinstance(read, NoImage) else self._grouping.pass_over(read)
            elif isinstance(read, NoImage):
                self._outcomes.left_out.without_image += 1
                if progress is not None:
                    progress.use([read.row], self._step)
                self._outcomes.record(read.row, NOTHING)
                group = None
            else:
                group = self._grouping.add(read)
            if group is not None:
                yield group
        if (group := self._grouping.finish()) is not None:
            yield group

    def _keep_without_bad(self, group: Group) -> bool:
        """Record the bad samples of a group, and return whether it is used without them; if not, record the others."""
        is_used = bool(group.samples) and self._errors.on_bad == "image"
        for number, bad in enumerate(group.bad):
            lost = int(not is_used and not number)  # the group is lost with the first
            self._outcomes.record(bad.row, of_bad(bad.bad, bad.left_out, lost))
        if not is_used:
            for sample in group.samples:
                self._outcomes.record(sample.row, of_bad(sample.bad, sample.num_images))
        return is_used

    @contextmanager
    def _naming_samples(self, rows: Rows) -> Iterator[None]:
        """Add the key and the shard to the error of a plan that a sample makes impossible."""
        try:
            yield
        except ValueError as error:
            row = first_invalid_row(rows, self._packing, self._seed, 0)
            if row is None:
                raise
            first = self._waiting[row][1]
            raise ValueError(
                f"{error}; the first such sample has key {first.key!r} in shard {redact(first.shard)!r}. Rows number "
                "the samples in order of arrival, from 0"
            ) from error
