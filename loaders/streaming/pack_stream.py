"""`pack_stream`: batches of packs from any iterable of samples, without an index and without random access."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
from torch.utils.data import get_worker_info

from patchnpack.loaders.assembly.batch_builder import DecodedBatchBuilder
from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.decode_pool import Batchlike, DecodePool
from patchnpack.loaders.assembly.samples import Transform, check_transform
from patchnpack.loaders.assembly.stats import Stats
from patchnpack.loaders.errors import BadRow, ErrorMonitor, ErrorPolicy, StallError
from patchnpack.loaders.imaging.user_decode import Decode, check_decode
from patchnpack.loaders.index.labels import Classes, Label
from patchnpack.loaders.index.table import IMAGE
from patchnpack.loaders.process import cpu_share, process_rank
from patchnpack.loaders.streaming.samples import Sample, SampleReader, StreamBatchContext, rows_of
from patchnpack.packer import Images, Native, PackedBatch, Packing, Plan, Planner, Rows, ScheduledResolution
from patchnpack.packer.checks import check_whole
from patchnpack.packer.images import measure
from patchnpack.packer.plan import decide_algorithm, images_per_pack

# B packs in a batch

_CHUNK = 16  # samples that are planned together: planning them one by one would cost more than reading their headers

_log = logging.getLogger("patchnpack")


def pack_stream(
    samples: Iterable[Any],
    packing: Packing | None = None,
    *,
    batch_size: int,
    image: str = IMAGE,
    label: Label = None,
    classes: Classes = None,
    extras: Sequence[str] = (),
    transform: Transform | None = None,
    decode: Decode | None = None,
    seed: int = 0,
    drop_last: bool = False,
    num_threads: int | None = None,
    prefetch: int = 2,
    errors: ErrorPolicy | None = None,
) -> PackedStream:
    """Packs the samples of any iterable as they come, and gives `PackedBatch`es: a stage for a webdataset pipeline.

    An image's size is known when its sample arrives, so packs are planned from integers, in order of arrival, while
    encoded bytes wait; pixels are decoded when their pack is out. The batches are a function of the samples, `packing`
    and `seed`, whatever the threads. There is no index: no resuming, no epochs, no even ranks; see `PackedImageLoader`.

    ```
    samples    a b c d e f g h ...     at most `lookahead` wait (four times as many with "..._decreasing")
    packs      | a c f | b d g h | ...
    ```

    Args:
        samples: dicts from member to value, as webdataset gives them, or (image, label) pairs. An image is encoded
            bytes, PIL's image (its EXIF orientation is applied) or a uint8 array (height, width, C).
        packing: what a sequence looks like; `Packing()` by default. "auto" is decided by the first `lookahead` images.
            `balance` is not read: it would have to wait for 256 packs.
        batch_size: B, packs in a batch.
        image: members that hold the image, separated by ";"; of several in a sample the first listed counts.
        label: None, "cls" (or any member that holds a text or number), "json:FIELD", or a callable from a sample's dict
            to an int or an array. The second part of a pair is its label: a number, a text, an array or None.
        classes: names of classes as a list, a file with one a line, or a mapping to indices.
        extras: members to hand out in `batch.extras`: txt as str, json as object, others as bytes, what is no longer
            bytes as it is; None where a sample has none.
        decode: called with the bytes of each encoded image, as by `PackedImageLoader`; PIL's images and arrays are
            decoded already.
        transform: called as `transform(image, rng)`, as by `PackedImageLoader`.
        seed: of every draw. Draws differ between ranks and workers, but not between calls: give each epoch another.
        drop_last: leave out a last batch that is not full; else empty packs fill it.
        num_threads: decoding threads; 0 decodes in the caller's. None is this process's share of the CPUs, and 0 in the
            worker process of a `DataLoader`.
        prefetch: batches that the threads decode ahead of the one in use, at least 1.
        errors: what is done about bad images; None is `ErrorPolicy()`.

    Returns:
        An iterator over the batches. `batch.rows` count the samples that arrived before, from 0, and `batch.position`
        the packs given; `batch.epoch` is 0.

    Raises:
        ValueError: an option out of range; while iterating, a sample of no kind that is read, a label that is neither a
            number nor a known class, or no sample of the first 1,000 that has an image, a label or a member asked for.

    An image that cannot be read, or is smaller than a patch, is logged, counted and left out; `stats()` lists it.

    >>> import numpy as np
    >>> pairs = [(np.zeros((32, 48, 3), np.uint8), label) for label in range(5)]
    >>> stream = pack_stream(pairs, Packing(seq_len=16, patch_size=16), batch_size=2)
    >>> [batch.labels[batch.image_mask].tolist() for batch in stream]
    [[0, 1, 2, 3], [4]]
    """
    # Objects with `__getitem__` alone are iterable too, torch's data sets among them.
    if isinstance(samples, str | bytes | os.PathLike | Mapping) or not (
        hasattr(samples, "__iter__") or hasattr(samples, "__getitem__")
    ):
        raise ValueError(
            f"samples is a {type(samples).__name__}; it must be an iterable of samples, such as a webdataset pipeline. "
            "For shards by name there is PackedImageLoader"
        )
    check_whole("batch_size", batch_size)
    check_whole("prefetch", prefetch)
    if num_threads is not None:
        check_whole("num_threads", num_threads, least=0)
    if isinstance(extras, str):
        raise ValueError(f"extras is {extras!r}; give a list of members: [{extras!r}]")
    check_decode(decode)
    check_transform(transform)
    stats, policy = Stats(), errors if errors is not None else ErrorPolicy()
    stream = _Stream(
        samples=samples,
        reader=SampleReader(image, label, classes, extras, policy, any_kind=decode is not None),
        packing=packing if packing is not None else Packing(),
        batch_size=batch_size,
        decode=decode,
        transform=transform,
        seed=seed,
        drop_last=drop_last,
        num_threads=num_threads,
        prefetch=prefetch,
        stats=stats,
        errors=policy,
    )
    return PackedStream(stream.batches(), stats)


class PackedStream(Iterator[PackedBatch]):
    """The batches of a stream, once. `close`, or letting go of it, ends its threads."""

    def __init__(self, batches: Generator[PackedBatch, None, None], stats: Stats) -> None:
        self._batches, self._stats = batches, stats

    def __next__(self) -> PackedBatch:
        return next(self._batches)

    def close(self) -> None:
        """Ends the stream: waits for what is being decoded and drops the rest."""
        self._batches.close()

    def stats(self) -> dict[str, Any]:
        """Totals so far, as of `PackedImageLoader.stats`.

        Once the stream has ended, images + bad_images + the skipped ones are the samples that arrived.
        """
        return self._stats.report()


class _OwnThread:
    """In a pool's place, does all work when it is submitted."""

    def submit(self, batch: Batchlike, parts: int) -> None:
        for part in range(parts):
            batch.run(part)

    def close(self, timeout: float | None = None) -> None:
        pass


class _InOrder:
    """Tells what became of the images in the order of their rows, whenever it is known: `max_consecutive` counts so."""

    def __init__(self, on_bad: Callable[[BadRow], None], on_good: Callable[[], None]) -> None:
        self._on_bad, self._on_good = on_bad, on_good
        self._known: dict[int, BadRow | bool] = {}
        self._next = 0

    def record(self, row: int, outcome: BadRow | bool) -> None:
        """`outcome` is the record of a bad image, True for a good one, False for one that was left out."""
        self._known[row] = outcome
        while self._next in self._known:
            outcome = self._known.pop(self._next)
            self._next += 1
            if isinstance(outcome, BadRow):
                self._on_bad(outcome)
            elif outcome:
                self._on_good()


class _Stream:
    """What a stream holds while it runs. Nothing here refers to the generator: it ends when its user lets go of it."""

    def __init__(
        self,
        *,
        samples: Iterable[Any],
        reader: SampleReader,
        packing: Packing,
        batch_size: int,
        decode: Decode | None,
        transform: Transform | None,
        seed: int,
        drop_last: bool,
        num_threads: int | None,
        prefetch: int,
        stats: Stats,
        errors: ErrorPolicy,
    ) -> None:
        self._samples, self._reader, self._packing, self._batch_size = samples, reader, packing, batch_size
        self._decode, self._transform, self._seed, self._drop_last = decode, transform, seed, drop_last
        self._num_threads, self._prefetch = num_threads, prefetch
        self._stats, self._errors, monitor = stats, errors, ErrorMonitor(errors)

        def on_bad(bad: BadRow) -> None:
            stats.add_bad(bad)
            monitor.quarantine(bad, 0)
            if bad.stage != "sample" or reader.has_seen_image:  # else no sample may have one: the reader says so
                monitor.record(1, [(0, bad)])

        self._outcomes = _InOrder(on_bad, lambda: monitor.record(1, []))
        self._buffers = BufferPool(keep=prefetch + 2)
        self._waiting: dict[int, Sample] = {}
        self._number, self._count = 0, 1  # of how many streams that train together this is which

    def batches(self) -> Generator[PackedBatch, None, None]:
        """The batches, decoded by threads ahead of their turn, or in the caller's thread when it asks."""
        worker, (rank, world_size) = get_worker_info(), process_rank()
        of_worker = (0, 1) if worker is None else (worker.id, worker.num_workers)
        self._number, self._count = rank * of_worker[1] + of_worker[0], world_size * of_worker[1]
        threads = self._num_threads
        if threads is None:
            threads = cpu_share() if worker is None else 0
        pool = DecodePool(threads) if threads else _OwnThread()
        ahead = self._prefetch if threads else 0
        drafts, under_way = self._drafts(), deque[DecodedBatchBuilder]()
        patience: float | None = None
        try:
            began = time.perf_counter()
            while True:
                asked = time.perf_counter()
                for draft in islice(drafts, ahead + 1 - len(under_way)):
                    pool.submit(draft, draft.num_parts)
                    under_way.append(draft)
                if not under_way:
                    break
                draft = under_way.popleft()
                batch = draft.finish()
                self._record(batch, [bad for _, bad in draft.bad])
                now = time.perf_counter()
                self._stats.add_batch(
                    batch,
                    without_label=draft.without_label,
                    truncated=draft.truncated,
                    waited=now - asked,
                    ran=now - began,
                )
                began = now
                del draft
                yield batch
                del batch
        except StallError:
            patience = 0.0  # the thread that is stuck would not end
            raise
        finally:
            pool.close(patience)
        total = self._stats
        _log.info(
            "the stream has ended: %d images in %d packs, %d bad, %d oversize and %d at the end left out",
            *(total.images, total.packs, total.bad_images, total.skipped["oversize"], total.skipped["tail"]),
        )

    def _record(self, batch: PackedBatch, bad: Sequence[BadRow]) -> None:
        for row in batch.rows[batch.image_mask].tolist():
            self._outcomes.record(row, True)
        for record in bad:
            self._outcomes.record(record.row, record)

    def _drafts(self) -> Iterator[DecodedBatchBuilder]:
        """The batches in the making; with `PatchSizes`, the packs of each have one patch size."""
        group: list[Images] = []
        step, patch_size = 0, 0
        for patch_size, pack in self._packs():
            group.append(pack)
            if len(group) == self._batch_size:
                yield self._draft(group, patch_size, step)
                group, step = [], step + 1
        if group and not self._drop_last:
            yield self._draft(group, patch_size, step)
        elif group:
            self._leave_out(np.concatenate([pack.row for pack in group]), "tail")

    def _draft(self, group: Sequence[Images], patch_size: int, step: int) -> DecodedBatchBuilder:
        making = StreamBatchContext(
            packing=self._packing,
            labels=self._reader.labels(),
            extras=self._reader.extras,
            transform=self._transform,
            seed=self._seed,
            buffers=self._buffers,
            errors=self._errors,
            user_decode=self._decode,
            taken=[self._waiting.pop(row) for pack in group for row in pack.row.tolist()],
        )
        packs = [*group, *[None] * (self._batch_size - len(group))]
        return DecodedBatchBuilder(
            making, packs, patch_size, epoch=0, step=step, position=(step + 1) * self._batch_size
        )

    def _leave_out(self, rows: np.ndarray, why: str) -> None:
        self._stats.skipped[why] += len(rows)
        for row in rows.tolist():
            del self._waiting[row]
            self._outcomes.record(row, False)

    def _packs(self) -> Iterator[tuple[int, Images]]:
        """Each pack's patch size and images, as soon as no later sample can change it."""
        planner = None
        for arrived in self._arrivals():
            rows = self._large_enough(arrived)
            if not len(rows):
                continue
            with self._naming(rows):
                if planner is None:
                    planner = self._planner(rows)
                plan = planner.add(rows)
            yield from self._planned(plan)
        if planner is not None:
            yield from self._planned(planner.finish())

    def _large_enough(self, rows: Rows) -> Rows:
        """The rows that the resolution can make patches of; the others are bad: a stream does not end for one image."""
        try:
            _check_sizes(rows, self._packing)
            return rows
        except ValueError:
            fits = np.ones(len(rows), np.bool_)
            for i, row in enumerate(rows.row.tolist()):
                try:
                    _check_sizes(rows.take(slice(i, i + 1)), self._packing)
                except ValueError as error:
                    fits[i] = False
                    self._outcomes.record(row, self._waiting.pop(row).bad_row("size", str(error)))
            return rows.take(fits)

    def _planned(self, plan: Plan) -> Iterator[tuple[int, Images]]:
        self._stats.oversize += len(plan.oversize)
        self._leave_out(plan.skipped, "oversize")
        for number, patch_size in enumerate(plan.patch_size.tolist()):
            yield patch_size, plan.pack(number)

    def _planner(self, first: Rows) -> Planner:
        """Plans the stream; what only a look at all images would tell is settled by the first ones."""
        packing = self._packing
        if packing.algorithm == "auto":
            measured = [
                measure(first, packing, seed=self._seed, epoch=0, patch_size=size) for size in packing.patch_sizes
            ]
            fits = np.full(len(first), packing.oversize != "skip") | ~np.any([over for _, over in measured], axis=0)
            packing = packing.replace(
                algorithm=decide_algorithm(packing, [images.take(fits) for images, _ in measured])
            )
        return Planner(
            packing,
            seed=self._seed,
            stream=self._number,
            num_streams=self._count,
            share=self._batch_size,
            images_per_pack=images_per_pack(first, packing, seed=self._seed),
        )

    def _arrivals(self) -> Iterator[Rows]:
        """What is planned next: the first `lookahead` samples, which the packers wait for in any case, then a few."""
        taken: list[Sample] = []
        wanted = self._packing.lookahead
        for sample in self._samples:
            read = self._reader.read(sample)
            if isinstance(read, BadRow):
                self._outcomes.record(read.row, read)
                continue
            self._waiting[read.row] = read
            taken.append(read)
            if len(taken) == wanted:
                rows, wanted = rows_of(taken, self._number), _CHUNK
                taken.clear()  # nothing but `_waiting` may hold on to samples
                yield rows
        self._reader.end()
        if taken:
            rows = rows_of(taken, self._number)
            taken.clear()
            yield rows

    @contextmanager
    def _naming(self, rows: Rows) -> Iterator[None]:
        """Where an image makes a plan impossible, says where in the stream it was."""
        try:
            yield
        except ValueError as error:
            first, last = (self._waiting[row] for row in rows.row[[0, -1]].tolist())
            error.add_note(
                f"rows are samples in order of arrival, from 0; it is one of {first.row} (key {first.key!r}) to "
                f"{last.row} (key {last.key!r})"
            )
            raise


def _check_sizes(rows: Rows, packing: Packing) -> None:
    """ValueError where an image is too small for one of the packing's patch sizes."""
    policy = packing.resolution
    for stage in [policy for _, policy in policy.stages] if isinstance(policy, ScheduledResolution) else [policy]:
        if isinstance(stage, Native):  # the others enlarge what is too small
            for size in packing.patch_sizes:
                stage.sizes(rows.width, rows.height, size, packing.grid_multiple)
