"""Assembling a batch: each image is read, decoded and written straight into its own slots, by any thread."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from patchnpack.loaders.assembly.samples import BatchContext, tuples
from patchnpack.loaders.errors import BadImage, BadRow, StallError
from patchnpack.loaders.index.labels import NO_LABEL
from patchnpack.packer import Images, PackedBatch, _kernels
from patchnpack.packer.policies.random import Purpose, counter_hash

# B packs in the batch, L token slots in a pack, K images in a pack at most, M images in the batch


class DecodedBatchBuilder:
    """A batch in the making. Threads `run` its parts in any order; `finish` waits for them and gives the batch.

    A part is an image, or, the last one, the padding of all packs. No two parts share a byte, so no lock is taken while
    they are written. The first part to run prepares the batch and the last one completes it: while a third thread, that
    of the training loop, did this, the decoding threads waited for the GIL.
    """

    def __init__(
        self,
        sources: BatchContext,
        packs: Sequence[Images | None],
        patch_size: int,
        *,
        epoch: int,
        step: int,
        position: int,
    ) -> None:
        self.num_images = sum(len(pack) for pack in packs if pack is not None)
        self.num_parts = self.num_images + 1
        self.bad: list[tuple[int, BadRow]] = []  # and which of the batch's images each is; in order, once finished
        self.without_label = self.truncated = 0
        self._truncated: set[int] = set()
        self._sources, self._epoch, self._step, self._position = sources, epoch, step, position
        self._packs, self._patch_size = packs, patch_size
        self._prepared, self._left = False, self.num_parts
        self._doing: dict[int, tuple[str, str]] = {}  # of each part under way: its stage, its thread
        self._lock, self._done = threading.Lock(), threading.Event()
        self._batch: PackedBatch | None = None
        self._error: BaseException | None = None

    def _prepare(self) -> None:
        sources, packs, packing, patch_size = self._sources, self._packs, self._sources.packing, self._patch_size
        shape, columns = (len(packs), packing.seq_len), (len(packs), packing.max_images)
        self._patches = sources.buffers.acquire((*shape, packing.token_bytes(patch_size)))
        self._segment_ids = np.zeros(shape, np.int32)
        self._coords = np.zeros((*shape, 2), np.int32)
        self._grids = np.zeros((*columns, 2), np.int32)
        self._sizes = np.zeros((*columns, 2), np.int32)
        self._rows = np.full(columns, -1, np.int64)
        self._labels = np.full((*columns, *sources.labels.shape), sources.labels.absent, sources.labels.dtype)
        self._extras: dict[tuple[str, int], Any] = {}

        counts = np.array([0 if pack is None else len(pack) for pack in packs])
        ends = np.cumsum(counts)
        self._failed = np.zeros(self.num_parts - 1, np.bool_)
        self._used = np.zeros(len(packs), np.int64)
        # Where image i goes: its pack, its column, its first slot.
        self._pack = np.repeat(np.arange(len(packs)), counts)
        self._column = np.arange(len(self._pack)) - np.repeat(ends - counts, counts)
        filled = [pack for pack in packs if pack is not None]
        if not filled:
            return
        self._images = Images.concatenate(filled)
        tokens = np.concatenate([[0], np.cumsum(self._images.keep, dtype=np.int64)])  # before each image, and in all
        before = tokens[ends - counts]
        self._used[:] = tokens[ends] - before
        self._start = tokens[:-1] - np.repeat(before, counts)
        self._grids[self._pack, self._column] = self._images.grid
        self._rows[self._pack, self._column] = self._images.row
        images, samples = self._images, sources.samples(self._images.row)
        self._samples = samples
        self._sizes[self._pack, self._column] = np.stack([samples.width, samples.height], 1)
        # As Python's own numbers: taking them out of arrays one by one would cost more than all else here.
        self._places = tuples(images.keep, self._pack, self._column, self._start, *images.size.T, *images.grid.T)
        whole = (images.box[:, 2] == samples.width) & (images.box[:, 3] == samples.height)
        self._boxes = None if whole.all() else tuples(*images.box.T)
        if sources.transform is not None:
            self._transform_keys = counter_hash(Purpose.TRANSFORM, sources.seed, self._epoch, images.key)

    def run(self, part: int) -> None:
        """Reads, decodes and writes one image, or clears the padding; keeps what it raises for `finish`."""
        try:
            if self._error is None:
                self._run(part)
        except BaseException as error:  # noqa: BLE001 - it is raised again, in the training loop's thread
            self._error = error
        self._doing.pop(part, None)
        with self._lock:
            self._left -= 1
            last = self._left == 0
        if last:
            try:
                if self._error is None:
                    self._batch = self._complete()
            except BaseException as error:  # noqa: BLE001 - likewise
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
            self._place(part)
        except BadImage as error:
            self._failed[part] = True
            self.bad.append((part, self._samples.bad_row(part, error.stage, str(error))))

    def _place(self, i: int) -> None:
        sources, doing, thread = self._sources, self._doing, threading.current_thread().name
        keep, pack, column, start, width, height, gw, gh = self._places[i]
        doing[i] = "read", thread
        data = self._samples.read(i)
        doing[i] = "decode", thread
        pixels = self._decode(i, data, (width, height))
        if sources.transform is not None:
            doing[i] = "transform", thread
            pixels = self._transformed(i, pixels)
        doing[i] = "assemble", thread
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
        for extension in sources.extras:
            self._extras[extension, i] = self._samples.extra(i, extension)

    def _decode(self, i: int, data: Any, size: tuple[int, int]) -> np.ndarray:
        box = None if self._boxes is None else self._boxes[i]
        try:
            return self._samples.decode(i, data, size, box, strict=True)
        except BadImage as error:
            if not error.truncated or self._sources.errors.truncated == "skip":
                raise
            pixels = self._samples.decode(i, data, size, box, strict=False)
            self._truncated.add(i)
            return pixels

    def _transformed(self, i: int, pixels: np.ndarray) -> np.ndarray:
        assert self._sources.transform is not None
        key = self._samples.keys[i]
        rng = np.random.Generator(np.random.Philox(key=int(self._transform_keys[i])))
        try:
            out = np.ascontiguousarray(self._sources.transform(pixels, rng))
        except Exception as error:
            error.add_note(f"raised by transform, for the image with key {key!r}")
            raise
        if out.shape != pixels.shape or out.dtype != np.uint8:
            raise ValueError(
                f"transform made {out.dtype} {out.shape} of image {key!r}, which was uint8 {pixels.shape}; it must "
                "keep both, since the plan is made"
            )
        return out

    @property
    def is_done(self) -> bool:
        """Whether `finish` would not wait."""
        return self._done.is_set()

    def finish(self) -> PackedBatch:
        """Waits until every image is in, and gives the batch. Raises what a thread raised, but for bad images.

        Raises:
            StallError: nothing has moved for as long as the policy allows.
        """
        left = self._left
        while not self._done.wait(self._sources.errors.stall_s):
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
            for i, (stage, thread) in sorted(self._doing.copy().items())
        ]
        return (
            f"no image has been finished for {self._sources.errors.stall_s:g} seconds; "
            + ("; ".join(lines) or "no thread has begun one, so an earlier batch or the machine holds them")
            + ". If this is no fault, raise stall_s"
        )

    def _complete(self) -> PackedBatch:
        self.bad.sort(key=lambda bad: bad[0])
        self.truncated = sum(not self._failed[i] for i in self._truncated)
        self._close_ranks()
        mask = self._rows >= 0
        labels = self._labels[mask]
        self.without_label = int((np.isnan(labels).all(-1) if labels.ndim == 2 else labels == NO_LABEL).sum())
        in_pack: list[list[int]] = [[] for _ in mask]  # the numbers of its images that did not fail
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
            extras={e: [[self._extras[e, i] for i in pack] for pack in in_pack] for e in self._sources.extras},
            patch_size=self._patch_size,
            step=self._step,
            epoch=self._epoch,
            position=self._position,
        )

    def _close_ranks(self) -> None:
        """Slots of failed images become padding; the images behind them move up a column, but not in place."""
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
                (self._labels, self._sources.labels.absent),
            ):
                kept = array[b, columns].copy()
                array[b] = empty
                array[b, : len(columns)] = kept
