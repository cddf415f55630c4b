"""`PackedImageLoader`: shards in, packed batches out. The one place where the plan and the decoding meet."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any, Literal

import numpy as np
import torch

from patchnpack.loaders.assemble import Draft, Sources, Transform, read_member
from patchnpack.loaders.buffers import BufferPool
from patchnpack.loaders.index import IMAGE, Index, scan
from patchnpack.loaders.labels import Classes, Label, Labels
from patchnpack.loaders.order import Order, Pack
from patchnpack.loaders.pool import DecodePool
from patchnpack.loaders.shards import Source
from patchnpack.loaders.state import Place, from_dict, to_dict
from patchnpack.loaders.stats import Stats
from patchnpack.packer import PackedBatch, Packing, PatchSizes, Plan
from patchnpack.packer.checks import check_whole
from patchnpack.packer.images import measure
from patchnpack.packer.packing import SAMPLE
from patchnpack.packer.plan import decide_algorithm

# B packs in a batch, W ranks, S streams

Where = Callable[[Index], np.ndarray]


class PackedImageLoader:
    """Streams batches of packed images out of webdataset tar shards, at native resolution.

    Sizes come from headers, so the whole order is planned from integers; pixels are decoded once, by threads, straight
    into the batch. The sequence of batches is a function of the shards, `packing`, `seed` and the epoch: identical for
    any number of threads and any `prefetch`.

    Args:
        source: shards by brace range, glob or list, or an `Index` made by `scan`.
        packing: what a sequence looks like; `Packing()` by default.
        batch_size: B, packs in a batch of this rank.
        shuffle: shuffle shards and, inside windows of `shuffle_window` shards, rows; anew each epoch.
        seed: of every shuffle and draw.
        repeat: `iter` goes on from epoch to epoch for ever; such a loader has no length.
        image: extensions that are images, separated by ";".
        label: None, "cls" (or any member that holds a text), "json:FIELD", or a callable from a sample's members
            (extension to bytes) to an int or an array.
        classes: names of classes as a list, a file with one a line, or a mapping to indices; without, labels are whole
            numbers.
        extras: extensions of members to hand out in `batch.extras`: txt as str, json as object, others as bytes; None
            where a sample has none. One that cannot be read so makes its image a bad one.
        transform: called as `transform(image, rng)` with a uint8 (H, W, C) array and a Generator keyed by (seed, epoch,
            row); gives an array of the same shape and type. Runs in the decoding threads.
        where: from an `Index` to a bool array, the rows to use; the others are counted as skipped.
        even: "pad" fills the last step with empty packs, "drop" leaves its packs out and counts their images.
        shuffle_window: shards inside which rows are shuffled.
        num_streams: S, slices that the epoch is cut into, each packed by itself; 1 packs best.
        block: packs in which the streams take turns, and of one patch size; a multiple of S. None is the packs of one
            step, over all ranks.
        num_threads: decoding threads; None is this rank's share of the CPUs.
        prefetch: batches made ahead of the one in use, at least 1.
        rank, world_size: None asks `torch.distributed`, then the environment, when iteration starts.

    Raises:
        FileNotFoundError: a shard that does not exist.
        ValueError: a source without images, a label that no sample has, an image smaller than a patch, an option out of
            range.

    `for batch in loader` is one epoch, the next one the next epoch.
    """

    def __init__(
        self,
        source: Source | Index,
        packing: Packing | None = None,
        *,
        batch_size: int,
        shuffle: bool = False,
        seed: int = 0,
        repeat: bool = False,
        image: str = IMAGE,
        label: Label = None,
        classes: Classes = None,
        extras: Sequence[str] = (),
        transform: Transform | None = None,
        where: Where | None = None,
        even: Literal["pad", "drop"] = "pad",
        shuffle_window: int = 16,
        num_streams: int = 1,
        block: int | None = None,
        num_threads: int | None = None,
        prefetch: int = 2,
        rank: int | None = None,
        world_size: int | None = None,
    ) -> None:
        for name, value in (
            ("batch_size", batch_size),
            ("shuffle_window", shuffle_window),
            ("num_streams", num_streams),
            ("block", block),
            ("num_threads", num_threads),
            ("prefetch", prefetch),
            ("world_size", world_size),
        ):
            if value is not None:
                check_whole(name, value)
        if even not in ("pad", "drop"):
            raise ValueError(f"even is {even!r}; it must be 'pad' or 'drop'")
        if (rank is None) != (world_size is None):
            raise ValueError(f"rank is {rank} and world_size is {world_size}; give both or neither")
        if isinstance(extras, str):
            raise ValueError(f"extras is {extras!r}; give a list of extensions: [{extras!r}]")
        if block is not None and block % num_streams:
            raise ValueError(f"block is {block}; it must be a multiple of num_streams, {num_streams}")

        self.packing = packing if packing is not None else Packing()
        self.index = source if isinstance(source, Index) else scan(source, image=image, num_threads=num_threads)
        self.batch_size, self.repeat = batch_size, repeat
        self._shuffle, self._seed, self._even = shuffle, seed, even
        self._shuffle_window, self._num_streams, self._block = shuffle_window, num_streams, block
        self._num_threads, self._prefetch = num_threads, prefetch
        self._rank_given = None if rank is None or world_size is None else _checked_rank(rank, world_size)
        self._filtered = ~_mask(where, self.index)
        self._usable = ~self._filtered
        self._usable[list(self.index.bad)] = False
        self._check_rows()

        reader = self.index.reader()
        labels = Labels(
            self.index, label, classes, lambda row, extension: read_member(self.index, reader, row, extension)
        )
        extras = [extension.lstrip(".").lower() for extension in extras]
        for extension in extras:
            if extension not in self.index.members:
                found = ", ".join(sorted(self.index.members))
                raise ValueError(f"extras asks for {extension!r}, which no sample has; their members are {found}")
        self._sources = Sources(
            index=self.index,
            reader=reader,
            packing=self.packing,
            labels=labels,
            extras=extras,
            transform=transform,
            seed=seed,
            buffers=BufferPool(keep=prefetch + 2),
        )
        self._stats = Stats()
        self._next = self._stands = Place(0, 0)  # where the next iterator begins; where training stands
        self._positions: dict[tuple[int, int], tuple[int, int]] = {}

    def _check_rows(self) -> None:
        """Finds out whether there is anything to yield, and which algorithm "auto" is."""
        rows, packing = self.index.rows(np.flatnonzero(self._usable)), self.packing
        images, fits = [], np.ones(len(rows), np.bool_)
        for size in packing.patch_sizes:
            measured, over = measure(rows, packing, seed=self._seed, epoch=0, patch_size=size)
            images.append(measured)
            if packing.oversize == "skip":
                fits &= ~over
        if not fits.any():
            raise ValueError(
                f"none of the {len(self.index)} images can be used: {len(self.index.bad)} are bad, "
                f"{int(self._filtered.sum())} filtered out by where, the others oversize"
            )
        # Decided once, from the first rows of the index: every epoch and every stream is packed alike.
        first = np.flatnonzero(fits)[:SAMPLE]
        algorithm = decide_algorithm(packing, [measured.take(first) for measured in images])
        self.packing = packing.replace(algorithm=algorithm)

    def __iter__(self) -> Iterator[PackedBatch]:
        rank, world_size = self._rank()
        order, begin = self._order(world_size), self._next
        self._next, self._stands = Place(begin.epoch + 1, 0), begin
        return self._batches(order, begin, rank, world_size)

    def __len__(self) -> int:
        if self.repeat:
            raise TypeError("a loader with repeat=True never ends and has no length; use total_steps(epochs)")
        return self._steps_in(self._next) or self._steps_in(Place(self._next.epoch + 1, 0))

    def total_steps(self, epochs: int) -> int:
        """Batches in the first `epochs` epochs together: what a learning-rate schedule needs."""
        return sum(self._steps_in(Place(epoch, 0)) for epoch in range(epochs))

    def set_epoch(self, epoch: int) -> None:
        """Says which epoch the next `iter` is, from its start; that of a state just loaded goes on where it stood."""
        if epoch < 0:
            raise ValueError(f"epoch is {epoch}; it must be at least 0")
        if epoch != self._next.epoch:
            self._next = self._stands = Place(epoch, 0)

    def state_dict(self, after: PackedBatch | None = None) -> dict[str, Any]:
        """Where training stands once `after`, or else the last batch handed out, has been used: a small JSON-able dict.

        It is the same on every rank. Batches that were made ahead count as not used.
        """
        place = self._stands if after is None else Place(after.epoch, after.position)
        return to_dict(place, self._order(self._rank()[1]))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next `iter` goes on where `state` was taken; an iterator that has not begun is left as it is.

        On any number of ranks and with any batch size, every pack of the epoch that was not used comes, in order; as
        long as a step takes as many packs over all ranks as before, the steps are the same. After the last batch of an
        epoch the next epoch comes.

        Raises:
            ValueError: no state, or one of other shards, another packing or another order; the difference is named.
        """
        self._next, self._block = from_dict(state, self._order(self._rank()[1]))
        self._stands = self._next

    def stats(self) -> dict[str, Any]:
        """Totals since the loader was made, of this rank.

        batches, packs, images, tokens, slots, padding (share of slots), bad_images and the first of them in `bad` (row,
        key, shard, offset, stage, reason), skipped (by "oversize", "where", "tail"), oversize, without_label, wait_s
        (seconds that the training loop waited), images_per_s, tokens_per_s.
        """
        return self._stats.report()

    @property
    def num_classes(self) -> int:
        """Outputs that a classifier of these labels needs; ValueError where only reading every label would tell."""
        count = self._sources.labels.num_classes
        if count is None:
            raise ValueError("the number of classes cannot be told from these labels; give it, or classes=")
        return count

    def _rank(self) -> tuple[int, int]:
        if self._rank_given is not None:
            return self._rank_given
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        try:
            rank, world_size = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
        except ValueError as error:
            raise ValueError(f"RANK and WORLD_SIZE in the environment must be whole numbers: {error}") from None
        return _checked_rank(rank, world_size)

    def _order(self, world_size: int) -> Order:
        block = self._block or self.batch_size * world_size
        if block % self._num_streams:
            raise ValueError(
                f"a step takes {block} packs, which num_streams {self._num_streams} does not divide; choose "
                "batch_size, num_streams or block so that it does"
            )
        if isinstance(self.packing.patch_size, PatchSizes) and block % (self.batch_size * world_size):
            raise ValueError(
                f"block is {block}, which a step of {self.batch_size * world_size} packs does not divide; with "
                "PatchSizes a step holds packs of one patch size: choose batch_size or block so that it does"
            )
        return Order(
            index=self.index,
            usable=self._usable,
            packing=self.packing,
            seed=self._seed,
            shuffle=self._shuffle,
            shuffle_window=self._shuffle_window,
            num_streams=self._num_streams,
            block=block,
        )

    def _epoch_positions(self, order: Order, epoch: int) -> tuple[int, int]:
        key = (epoch, order.block)
        if key not in self._positions:
            self._positions[key] = order.positions(epoch)
        return self._positions[key]

    def _wanted(self, order: Order, position: int, step: int) -> int:
        """Packs of the step at `position`: with `PatchSizes` a step ends where its block does."""
        left = order.block - position % order.block
        return min(step, left) if isinstance(self.packing.patch_size, PatchSizes) else step

    def _steps_in(self, begin: Place) -> int:
        world_size = self._rank()[1]
        step, order = self.batch_size * world_size, self._order(world_size)
        padded, full = self._epoch_positions(order, begin.epoch)
        end, position, steps = padded if self._even == "pad" else full, begin.position, 0
        sizes = isinstance(self.packing.patch_size, PatchSizes)
        while sizes and position % order.block and position < end:
            wanted = self._wanted(order, position, step)
            steps, position = steps + (self._even == "pad" or position + wanted <= end), position + wanted
        left = max(0, end - position)
        return steps + (-(-left // step) if self._even == "pad" else left // step)

    def _steps(self, order: Order, begin: Place, rank: int, world_size: int) -> Iterator[tuple[list[Pack], int]]:
        """This rank's packs of each step, and the position behind it."""
        stats, step = self._stats, self.batch_size * world_size

        def mine(rows: np.ndarray) -> int:
            return int((rows % world_size == rank).sum())

        def note(plan: Plan) -> None:
            stats.oversize += mine(plan.oversize)
            stats.skipped["oversize"] += mine(plan.skipped)

        stats.skipped["where"] += mine(np.flatnonzero(self._filtered))
        for row, reason in self.index.bad.items():
            if row % world_size == rank and not self._filtered[row]:
                stats.add_bad(self._sources.bad_row(row, "header", reason))
        packs, position, full = order.packs(begin.epoch, note), begin.position, None
        if self._even == "drop":
            full = self._epoch_positions(order, begin.epoch)[1]
            if full < step:
                raise ValueError(
                    f"even='drop' leaves no batch: a step takes {step} packs over all ranks, more than the epoch has; "
                    "use even='pad' or a smaller batch_size"
                )
        taken = islice(packs, position, None if full is None else max(full, position))
        while group := list(islice(taken, wanted := self._wanted(order, position, step))):
            if full is not None and len(group) < wanted:
                packs = chain(group, packs)
                break
            position += wanted
            empty = Pack(group[0].patch_size)
            yield [*group, *[empty] * (step - len(group))][rank::world_size], position
        for pack in packs:
            if pack.images is not None:
                stats.skipped["tail"] += mine(pack.images.row)

    def _drafts(self, order: Order, begin: Place, rank: int, world_size: int) -> Iterator[Draft]:
        while True:
            step = -(-begin.position // (self.batch_size * world_size))
            made = False
            for packs, position in self._steps(order, begin, rank, world_size):
                images, patch_size = [pack.images for pack in packs], packs[0].patch_size
                yield Draft(self._sources, images, patch_size, epoch=begin.epoch, step=step, position=position)
                step, made = step + 1, True
            if (made or not begin.position) and not self.repeat:
                return
            begin = Place(begin.epoch + 1, 0)

    def _batches(self, order: Order, begin: Place, rank: int, world_size: int) -> Iterator[PackedBatch]:
        pool = DecodePool(self._num_threads or _cpu_share())
        drafts = self._drafts(order, begin, rank, world_size)
        under_way: deque[Draft] = deque()
        first = begin.epoch

        def start(count: int) -> None:
            for draft in islice(drafts, count):
                pool.submit(draft, draft.num_parts)
                under_way.append(draft)

        try:
            began = time.perf_counter()
            start(self._prefetch)
            while under_way:
                draft = under_way.popleft()
                waiting = time.perf_counter()
                batch = draft.finish()
                now = time.perf_counter()
                self._count(batch, draft, waited=now - waiting, ran=now - began)
                began = now
                start(1)
                self._stands = Place(batch.epoch, batch.position)
                if self.repeat or batch.epoch > first:
                    self._next = Place(batch.epoch + 1, 0)
                yield batch
                del batch, draft
        finally:
            pool.close()

    def _count(self, batch: PackedBatch, draft: Draft, *, waited: float, ran: float) -> None:
        stats = self._stats
        stats.batches += 1
        stats.packs += sum(map(bool, batch.keys))
        stats.images += batch.num_images
        stats.tokens += batch.num_tokens
        stats.slots += batch.segment_ids.numel()
        stats.wait_s += waited
        stats.run_s += ran
        stats.without_label += draft.without_label
        for row in sorted(draft.bad, key=lambda bad: bad.row):
            stats.add_bad(row)


def _checked_rank(rank: int, world_size: int) -> tuple[int, int]:
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank}; it must be from 0 to world_size - 1 = {world_size - 1}")
    return rank, world_size


def _mask(where: Where | None, index: Index) -> np.ndarray:
    if where is None:
        return np.ones(len(index), np.bool_)
    mask = np.asarray(where(index))
    if mask.shape != (len(index),) or mask.dtype != np.bool_:
        raise ValueError(
            f"where gave {mask.dtype} {mask.shape}; it must give bool ({len(index)},), one value a row of the index"
        )
    return mask


def _cpu_share() -> int:
    """CPUs of this process, shared among the ranks of this machine."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cpus // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
