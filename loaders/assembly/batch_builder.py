"""Batch builders: threads read, decode and write each image into its own slots of the batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch

from patchnpack.loaders.assembly.context import BatchContext
from patchnpack.loaders.errors import BadImage, BadRow, StallError
from patchnpack.loaders.index.labels import count_absent
from patchnpack.packer import Images, PackedBatch, _kernels
from patchnpack.packer.policies.random import Purpose, counter_hash

# B packs in the batch, L token slots in a pack, K images in a pack at most, M images in the batch


class BatchBuilder(Protocol):
    """A batch that is being built. Threads `run` its parts in any order; `finish` waits for them.

    Attributes:
        num_parts: parts to run, at least 1.
        num_images: images that were planned for the batch, M.
        bad: the bad images, each with its number in the batch, ascending; complete once `finish` has returned.
        without_label: images without a label; set once `finish` has returned.
        truncated: JPEGs that end early and were kept; set once `finish` has returned.
    """

    num_parts: int
    num_images: int
    bad: list[tuple[int, BadRow]]
    without_label: int
    truncated: int

    def run(self, part: int) -> None:
        """Build one part, from 0 to `num_parts` - 1. Never raises: `finish` raises instead."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether `finish` returns without waiting."""
        ...

    def finish(self) -> PackedBatch:
        """Wait for all parts and return the batch.

        Re-raises what a part raised, except BadImage.

        Raises:
            StallError: no part has finished for as long as the error policy allows.
        """
        ...


class DecodedBatchBuilder:
    """Builds a batch by decoding its images; see `BatchBuilder`.

    Each image is a part, and the last part clears the padding of all packs. No two parts write the same byte, so
    writing takes no lock. The first part to run prepares the batch and the last one completes it: when the training
    loop's thread did both, the decoding threads waited for the GIL.

    Args:
        context: how the images are made.
        packs: the images of each pack, None for an empty pack.
        patch_size: P, in pixels.
        epoch, step, position: of the batch.
    """

    def __init__(
        self,
        context: BatchContext,
        packs: Sequence[Images | None],
        patch_size: int,
        *,
        epoch: int,
        step: int,
        position: int,
    ) -> None:
        self.num_images = sum(len(pack) for pack in packs if pack is not None)
        self.num_parts = self.num_images + 1
        self.bad: list[tuple[int, BadRow]] = []
        self.without_label = self.truncated = 0
        self._truncated: set[int] = set()
        self._context, self._epoch, self._step, self._position = context, epoch, step, position
        self._packs, self._patch_size = packs, patch_size
        self._prepared, self._left = False, self.num_parts
        self._stages: dict[int, tuple[str, str]] = {}  # stage and thread of each part that is running
        self._lock, self._done = threading.Lock(), threading.Event()
        self._batch: PackedBatch | None = None
        self._error: BaseException | None = None

    def _prepare(self) -> None:
        context, packs, packing, patch_size = self._context, self._packs, self._context.packing, self._patch_size
        shape, columns = (len(packs), packing.seq_len), (len(packs), packing.max_images)
        self._patches = context.buffers.acquire((*shape, packing.token_bytes(patch_size)))
        self._segment_ids = np.zeros(shape, np.int32)
        self._coords = np.zeros((*shape, 2), np.int32)
        self._grids = np.zeros((*columns, 2), np.int32)
        self._sizes = np.zeros((*columns, 2), np.int32)
        self._rows = np.full(columns, -1, np.int64)
        self._labels = np.full((*columns, *context.labels.shape), context.labels.absent, context.labels.dtype)
        self._extras: dict[tuple[str, int], Any] = {}

        counts = np.array([0 if pack is None else len(pack) for pack in packs])
        ends = np.cumsum(counts)
        self._failed = np.zeros(self.num_parts - 1, np.bool_)
        self._used = np.zeros(len(packs), np.int64)
        # The slots of image i: its pack, its column, its first slot.
        self._pack = np.repeat(np.arange(len(packs)), counts)
        self._column = np.arange(len(self._pack)) - np.repeat(ends - counts, counts)
        filled = [pack for pack in packs if pack is not None]
        if not filled:
            return
        self._images = Images.concatenate(filled)
        tokens = np.concatenate([[0], np.cumsum(self._images.keep, dtype=np.int64)])  # before each image, then in all
        before = tokens[ends - counts]
        self._used[:] = tokens[ends] - before
        self._start = tokens[:-1] - np.repeat(before, counts)
        self._grids[self._pack, self._column] = self._images.grid
        self._rows[self._pack, self._column] = self._images.row
        images, samples = self._images, context.samples(self._images.row)
        self._samples = samples
        self._sizes[self._pack, self._column] = np.stack([samples.width, samples.height], 1)
        # Python integers: reading them from arrays one by one would cost more than everything else here.
        self._slots = tuples(images.keep, self._pack, self._column, self._start, *images.size.T, *images.grid.T)
        whole = (images.box[:, 2] == samples.width) & (images.box[:, 3] == samples.height)
        self._boxes = None if whole.all() else tuples(*images.box.T)
        if context.transform is not None:
            self._transform_keys = counter_hash(Purpose.TRANSFORM, context.seed, self._epoch, images.key)

    def run(self, part: int) -> None:
        """Read, decode and write one image, or clear the padding; `finish` raises what this raises."""
        try:
            if self._error is None:
                self._run(part)
        except BaseException as error:  # noqa: BLE001 - `finish` raises it in the training loop's thread
            self._error = error
        self._stages.pop(part, None)
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            try:
                if self._error is None:
                    self._batch = self._complete()
            except BaseException as error:  # noqa: BLE001 - `finish` raises it, too
                self._error = error
            self._done.set()

    def _run(self, part: int) -> None:
        if not self._prepared:
            with self._lock:
                if not self._prepared:
                    self._prepare()
                    self._prepared = True
        if part == self.num_parts - 1:
            _kernels.clear_padding(self._patches, self._used)
            return
        try:
            self._write(part)
        except BadImage as error:
            self._failed[part] = True
            self.bad.append((part, self._samples.bad_row(part, error.stage, str(error))))

    def _write(self, i: int) -> None:
        context, stages, thread = self._context, self._stages, threading.current_thread().name
        keep, pack, column, start, width, height, gw, gh = self._slots[i]
        stages[i] = "read", thread
        data = self._samples.read(i)
        stages[i] = "decode", thread
        pixels = self._decode(i, data, (width, height))
        if context.transform is not None:
            stages[i] = "transform", thread
            pixels = self._transformed(i, pixels)
        stages[i] = "assemble", thread
        slots = slice(start, start + keep)
        _kernels.place_kept(
            pixels,
            self._patch_size,
            gw,
            gh,
            self._images.key[i],
            column + 1,
            self._patches[pack, slots],
            self._segment_ids[pack, slots],
            self._coords[pack, slots],
        )
        self._labels[pack, column] = self._samples.label(i)
        for extension in context.extras:
            self._extras[extension, i] = self._samples.extra(i, extension)

    def _decode(self, i: int, data: Any, size: tuple[int, int]) -> np.ndarray:
        box = None if self._boxes is None else self._boxes[i]
        try:
            return self._samples.decode(i, data, size, box, strict=True)
        except BadImage as error:
            if not error.truncated or self._context.errors.truncated == "skip":
                raise
            pixels = self._samples.decode(i, data, size, box, strict=False)
            self._truncated.add(i)
            return pixels

    def _transformed(self, i: int, pixels: np.ndarray) -> np.ndarray:
        assert self._context.transform is not None
        key = self._samples.keys[i]
        rng = np.random.Generator(np.random.Philox(key=int(self._transform_keys[i])))
        try:
            out = np.ascontiguousarray(self._context.transform(pixels, rng))
        except Exception as error:
            error.add_note(f"raised by transform for the image with key {key!r}")
            raise
        if out.shape != pixels.shape or out.dtype != np.uint8:
            raise ValueError(
                f"transform returned {out.dtype} {out.shape} for image {key!r}, which is uint8 {pixels.shape}; it must "
                "keep type and shape, since the plan depends on them"
            )
        return out

    @property
    def is_done(self) -> bool:
        """Whether `finish` returns without waiting."""
        return self._done.is_set()

    def finish(self) -> PackedBatch:
        """Wait for all parts and return the batch; see `BatchBuilder`."""
        left = self._left
        while not self._done.wait(self._context.errors.stall_s):
            if left == self._left:
                raise StallError(self._stalled())
            left = self._left
        if self._error is not None:
            raise self._error
        assert self._batch is not None
        return self._batch

    def _stalled(self) -> str:
        lines = [
            f"{thread} is at stage {stage!r} of image {self._samples.keys[i]!r} in shard {self._samples.shard(i)!r}"
            for i, (stage, thread) in sorted(self._stages.copy().items())
        ]
        return (
            f"no image was finished for {self._context.errors.stall_s:g} seconds; "
            + ("; ".join(lines) or "no thread has started one, so an earlier batch or the machine blocks the threads")
            + ". If images may take this long, raise stall_s"
        )

    def _complete(self) -> PackedBatch:
        self.bad.sort(key=lambda bad: bad[0])
        self.truncated = sum(not self._failed[i] for i in self._truncated)
        self._close_ranks()
        mask = self._rows >= 0
        self.without_label = count_absent(self._labels[mask])
        in_pack: list[list[int]] = [[] for _ in mask]  # the good images of each pack
        for i, (b, failed) in enumerate(zip(self._pack.tolist(), self._failed.tolist(), strict=True)):
            if not failed:
                in_pack[b].append(i)
        return PackedBatch(
            patches=torch.from_numpy(self._patches),
            segment_ids=torch.from_numpy(self._segment_ids),
            coords=torch.from_numpy(self._coords),
            grids=torch.from_numpy(self._grids),
            image_sizes=torch.from_numpy(self._sizes),
            image_mask=torch.from_numpy(mask),
            labels=torch.from_numpy(self._labels),
            rows=torch.from_numpy(self._rows),
            keys=[[self._samples.keys[i] for i in pack] for pack in in_pack],
            extras={e: [[self._extras[e, i] for i in pack] for pack in in_pack] for e in self._context.extras},
            patch_size=self._patch_size,
            step=self._step,
            epoch=self._epoch,
            position=self._position,
        )

    def _close_ranks(self) -> None:
        """Turn the slots of failed images into padding and close the gaps in numbering; no token moves."""
        for b in set(self._pack[self._failed].tolist()):
            here = np.flatnonzero(self._pack == b)
            good = here[~self._failed[here]]
            number = np.zeros(len(here) + 1, np.int32)
            number[self._column[good] + 1] = np.arange(1, len(good) + 1)
            for i in here[self._failed[here]]:
                slots = slice(self._start[i], self._start[i] + self._images.keep[i])
                self._patches[b, slots], self._coords[b, slots], self._segment_ids[b, slots] = 0, 0, 0
            self._segment_ids[b] = number[self._segment_ids[b]]
            columns = self._column[good]
            for array, empty in (
                (self._grids, 0),
                (self._sizes, 0),
                (self._rows, -1),
                (self._labels, self._context.labels.absent),
            ):
                kept = array[b, columns].copy()
                array[b] = empty
                array[b, : len(columns)] = kept


def tuples(*columns: np.ndarray) -> list[tuple[int, ...]]:
    """Return the rows of the columns as tuples of Python integers."""
    return list(zip(*(column.tolist() for column in columns), strict=True))
