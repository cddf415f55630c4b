"""`DecodedBatchBuilder`: threads read, decode and write each image into its own slots of the batch."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from itertools import accumulate, chain, count, pairwise
from threading import get_ident
from typing import Any

import numpy as np
import torch

from patchnpack.loaders.assembly.builders.batch_targets import BatchTargets, Decoded
from patchnpack.loaders.assembly.builders.columns import Columns
from patchnpack.loaders.assembly.context import BatchContext
from patchnpack.loaders.assembly.stats import BatchCounts
from patchnpack.loaders.assembly.transform import takes_targets
from patchnpack.loaders.errors import BadImage, BadRow, StallError
from patchnpack.loaders.imaging.decode_buffers import DecodeBuffers
from patchnpack.loaders.labels.labels import count_absent
from patchnpack.packer import Images, PackedBatch, _detail, _kernels
from patchnpack.packer._turns import mirror
from patchnpack.packer.policies.random import Purpose, counter_hash

# B packs in the batch, L token slots in a pack, K images in a pack at most, M images in the batch

_buffers = DecodeBuffers()  # of mirrored pixels
_DONE = ""  # the stage of a part that has ended


class DecodedBatchBuilder:
    """Builds a batch by decoding its images, each a sample; see `BatchBuilder`.

    Each image is a part, and the last part clears the padding of all packs. No two parts write the same byte, so
    writing takes no lock. The first part to run lays out the batch and the last one completes it: when the training
    loop's thread did both, the decoding threads waited for the GIL. Everything that is known without a pixel is made
    by the thread that plans: between two images, a decoding thread has no Python left in its caches, and the same
    lines take several times as long there.

    Args:
        context: how the images are made.
        images: the images of the batch, pack by pack.
        counts: the number of images in each pack.
        patch_size: P, in pixels.
        epoch, step, position: of the batch.
    """

    def __init__(
        self,
        context: BatchContext,
        images: Images,
        counts: Sequence[int],
        patch_size: int,
        *,
        epoch: int,
        step: int,
        position: int,
    ) -> None:
        self.num_images = len(images)
        self.bad: list[tuple[int, BadRow]] = []
        self.lost: list[int] = []
        self.bad_samples = self.without_label = self.truncated = self.multi_page = 0
        self.warnings: list[str] = []
        self._truncated: set[int] = set()
        self._context, self._epoch, self._step, self._position = context, epoch, step, position
        self._images, self._counts, self._patch_size = images, counts, patch_size
        self._extras: dict[str, list[Any]] = {name: [None] * self.num_images for name in context.extras}
        self._laid_out, self._ended = False, count(1)  # counting up is atomic, and cheaper than taking a lock
        self._lock, self._running = threading.Lock(), threading.Lock()
        self._running.acquire()  # until the last part has ended; an Event costs several times as much
        self._batch: PackedBatch | None = None
        self._fields: dict[str, Any] = {}  # of the batch, as far as they are known
        self._numbers: np.ndarray | None = None  # `samples` of the batch, where samples hold several images
        self._error: tuple[int, BaseException] | None = None  # the part that raised it, first

        self._by_detail = context.packing.select == "detail"
        self._samples = samples = context.samples(images.row, images.page)
        sides = samples.width, samples.height
        self._columns = columns = Columns(images, counts, *sides, context.packing, context.labels)
        self._labels, self._column = columns.labels, columns.column
        if samples.labels is not None:
            self._labels[self._column] = samples.labels
        # Python integers: reading them from arrays one by one would cost more than everything else here.
        places = (columns.first.tolist(), images.keep.tolist(), *images.grid.T.tolist())
        self._places = list(zip(*places, tuples(*images.size.T), strict=True))
        whole = (images.box[:, 2] == samples.width) & (images.box[:, 3] == samples.height)
        self._boxes = None if whole.all() else tuples(*images.box.T)
        self._flips = None if images.flip is None else images.flip.tolist()
        self._targets = BatchTargets(context, images, *sides, patch_size) if context.targets else None
        self._changes_pixels = bool(context.transform is not None or images.flip is not None or context.targets)
        self.num_parts = self._divide() + 1  # the last one clears the padding
        # Stage of each part, None before it starts, and the thread that runs it.
        self._stages: list[str | None] = [None] * self.num_parts
        self._threads = [0] * self.num_parts
        if context.transform is not None:
            self._transform_keys = counter_hash(Purpose.TRANSFORM, context.seed, epoch, self._draw_keys())
        self._fill_fields()

    def _divide(self) -> int:
        """Divide the images into parts, and return how many these are."""
        return self.num_images

    def _draw_keys(self) -> np.ndarray:
        """Return the key of each image's draws in the transform, uint64 (M,)."""
        return self._images.key

    def _fill_fields(self) -> None:
        """Make the fields of the batch that need no pixels, and count it, as if no image were bad."""
        columns, samples = self._columns, self._samples
        fields = columns.fields
        mask = fields["rows"] >= 0
        fields["samples"], fields["frames"] = self._sample_columns(mask)
        self._fields = {
            **{name: torch.from_numpy(array) for name, array in fields.items()},
            "image_mask": torch.from_numpy(mask),
            "targets": {},
            "target_fill": {},
            "keys": self._listed(samples.keys, self._counts),
            "patch_size": self._patch_size,
            "step": self._step,
            "epoch": self._epoch,
            "position": self._position,
            "scaled_decode": self._context.packing.scaled_decode,
            "cu_seqlens": torch.from_numpy(columns.starts),
            "lengths": self._images.keep.tolist(),
        }
        slots = len(self._counts) * self._context.packing.seq_len
        counted = mask, fields["grids"], fields["image_sizes"], columns.starts
        scope = self._context.packing.scope
        self.counts = BatchCounts.of_columns(*counted, self._patch_size, slots, self._numbers, scope)
        if samples.labels is not None:
            self.without_label = self._count_without_label(self.num_images)

    def _sample_columns(self, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return `PackedBatch.samples` and `PackedBatch.frames`, int32 (B, K) each."""
        numbers = np.where(mask, np.arange(1, mask.shape[1] + 1, dtype=np.int32), 0)
        return numbers, np.zeros_like(numbers)

    def _lay_out(self) -> None:
        packing, images = self._context.packing, self._images
        slots = len(self._counts) * packing.seq_len
        self._patches = self._context.buffers.acquire((slots, packing.token_bytes(self._patch_size)))
        self._segment_ids, self._coords = np.empty(slots, np.int32), np.empty((slots, 2), np.int32)
        token_index = np.empty(self.counts.tokens, np.int64)
        _kernels.lay_out(
            images.key,
            images.grid,
            images.keep,
            self._columns.segment,
            self._columns.first,
            self._segment_ids,
            self._coords,
            token_index,
        )
        if self._targets is not None:
            self._targets.lay_out(slots)
        self._fields |= {
            "patches": torch.from_numpy(self._by_pack(self._patches).view(packing.dtype)),
            "segment_ids": torch.from_numpy(self._by_pack(self._segment_ids)),
            "coords": torch.from_numpy(self._by_pack(self._coords)),
            "token_index": torch.from_numpy(token_index),
        }

    def run(self, part: int) -> None:
        """Read, decode and write one image, or clear the padding; `finish` raises what this raises."""
        try:
            # The first error in the order of the batch is raised, whichever thread is the fastest.
            if self._error is None or part < self._error[0]:
                if not self._laid_out:
                    self._lay_out_once()
                if part == self.num_parts - 1:
                    _kernels.clear_padding(self._by_pack(self._patches), self._columns.used)
                else:
                    try:
                        self._write(part)
                    except BadImage as error:
                        self.bad.append((part, self._samples.bad_row(part, error.stage, str(error))))
        except BaseException as error:  # noqa: BLE001 - `finish` raises it in the training loop's thread
            with self._lock:
                if self._error is None or part < self._error[0]:
                    self._error = part, error
        self._stages[part] = _DONE
        if next(self._ended) == self.num_parts:
            try:
                if self._error is None:
                    self._batch = self._complete()
            except BaseException as error:  # noqa: BLE001 - `finish` raises it, too
                self._error = part, error
            self._running.release()

    def _lay_out_once(self) -> None:
        with self._lock:
            if not self._laid_out:
                self._lay_out()
                self._laid_out = True

    def _write(self, i: int) -> None:
        # Between two images, the processor's caches hold pixels and no Python: each frame and each object costs a
        # multiple of what it costs in a loop of its own, so this path has few.
        context, samples, stages = self._context, self._samples, self._stages
        size = self._places[i][4]
        self._threads[i] = get_ident()
        stages[i] = "read"
        data = samples.read(i)
        stages[i] = "decode"
        box = None if self._boxes is None else self._boxes[i]
        try:
            pixels = samples.decode(i, data, size, box, True, self.warnings.append)
        except BadImage as error:
            if not error.truncated or context.errors.truncated == "skip":
                raise
            pixels = samples.decode(i, data, size, box, False, self.warnings.append)
            self._truncated.add(i)
        if self._changes_pixels:
            stages[i] = "transform"
            pixels = self._changed(i, pixels)
        stages[i] = "assemble"
        self._place(i, pixels)
        if samples.labels is None:
            self._labels[self._column[i]] = samples.label(i)
        for extension in context.extras:
            self._extras[extension][i] = samples.extra(i, extension)

    def _place(self, i: int, pixels: np.ndarray) -> None:
        """Write the kept tokens of image i into its slots."""
        first, keep, gw, gh, _ = self._places[i]
        if self._by_detail and keep < gw * gh:
            is_whole = pixels.dtype.kind != "f"
            choose = _detail.choose_detailed if is_whole else _detail.choose_detailed_fractions
            choose(pixels, self._patch_size, gw, gh, self._coords, first, keep)
        # As bytes, so that one compiled kernel serves all types: it moves whole pixels.
        _kernels.place_image(bytes_of(pixels), self._patch_size, gw, gh, self._coords, self._patches, first, keep)
        if self._targets is not None:
            self._targets.write(i, self._coords, first, keep)

    def _changed(self, i: int, pixels: np.ndarray) -> np.ndarray:
        """Return the pixels of image i as the plan mirrors and the transform changes them; place its targets."""
        if self._flips is not None and self._flips[i]:
            pixels = mirrored(pixels, self._flips[i])
        if self._targets is not None:
            self._targets.place(i, *self._read_targets(i))
        return pixels if self._context.transform is None else self._transformed(i, pixels)

    def _read_targets(self, i: int) -> tuple[Decoded, int]:
        """Return the targets of the file of image i, and the orientation of the file. Raises BadImage."""
        assert self._targets is not None
        orientation = self._samples.orientation(i)
        return self._targets.decoded(i, self._samples, orientation), orientation

    def _transformed(self, i: int, pixels: np.ndarray) -> np.ndarray:
        assert self._context.transform is not None
        key = self._samples.keys[i]
        rng = np.random.Generator(np.random.Philox(key=int(self._transform_keys[i])))
        try:
            if self._targets is not None and takes_targets(self._context.transform):
                changed = self._targets.change(i, self._context.transform(pixels, rng, self._targets.values(i)))
            else:
                changed = self._context.transform(pixels, rng)
            out = np.ascontiguousarray(changed)
        except Exception as error:
            error.add_note(f"raised by transform for the image with key {key!r}")
            raise
        if out.shape != pixels.shape or out.dtype != pixels.dtype:
            raise ValueError(
                f"transform returned {out.dtype} {out.shape} for image {key!r}, which is {pixels.dtype} {pixels.shape}"
                "; it must keep type and shape, since the plan depends on them"
            )
        return out

    @property
    def is_done(self) -> bool:
        """Whether `finish` returns without waiting."""
        return not self._running.locked()

    def finish(self) -> PackedBatch:
        """Wait for all parts and return the batch; see `BatchBuilder`."""
        ended = self._stages.count(_DONE)
        while not self._running.acquire(timeout=self._context.errors.stall_s):
            before, ended = ended, self._stages.count(_DONE)
            if ended == before:
                raise StallError(self._stalled())
        self._running.release()
        if self._error is not None:
            raise self._error[1]
        assert self._batch is not None
        return self._batch

    def _stalled(self) -> str:
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        lines = [
            f"{names.get(thread)} is at stage {stage!r} of image {self._samples.keys[i]!r} in shard "
            f"{self._samples.shard(i)!r}"
            for i, stage, thread in zip(self._first_of_parts(), self._stages, self._threads, strict=False)
            if stage
        ]
        return (
            f"no image was finished for {self._context.errors.stall_s:g} seconds; "
            + ("; ".join(lines) or "no thread has started one, so an earlier batch or the machine blocks the threads")
            + ". If images may take this long, raise stall_s"
        )

    def _first_of_parts(self) -> Sequence[int]:
        """Return the first image of each part."""
        return range(self.num_images)

    def _settle(self) -> None:
        """Set what the bad images take with them, once all parts have ended."""
        self.lost, self.bad_samples = sorted(i for i, _ in self.bad), len(self.bad)

    def _complete(self) -> PackedBatch:
        self._settle()
        if self.bad:
            return self._complete_without_bad()
        if self._samples.labels is None:
            self.without_label = self._count_without_label(self.num_images)
        self.truncated = len(self._truncated)
        self.multi_page = int(np.count_nonzero(self._samples.pages != 1))
        extras = {name: self._listed(values, self._counts) for name, values in self._extras.items()}
        if self._targets is not None:
            self._fields |= self._targets.fields(range(self.num_images), self._counts)
        return PackedBatch.from_dict(self._fields | {"extras": extras})

    def _complete_without_bad(self) -> PackedBatch:
        self.bad.sort(key=lambda bad: bad[0])
        failed = set(self.lost)
        edges = pairwise(accumulate(self._counts, initial=0))
        good = [[i for i in range(low, high) if i not in failed] for low, high in edges]
        self._close_ranks(failed, good)
        counts, kept = list(map(len, good)), list(chain.from_iterable(good))
        if self._targets is not None:
            self._fields |= self._targets.fields(kept, counts)
        derived = {"cu_seqlens", "token_index", "lengths"}  # `PackedBatch` finds them itself
        if self._numbers is None:
            derived |= {"samples", "frames"}
        batch = PackedBatch(
            **{name: value for name, value in self._fields.items() if name not in derived}
            | {
                "image_mask": torch.from_numpy(self._columns.fields["rows"] >= 0),
                "keys": self._listed([self._samples.keys[i] for i in kept], counts),
                "extras": {
                    name: self._listed([values[i] for i in kept], counts) for name, values in self._extras.items()
                },
            }
        )
        self.without_label = self._count_without_label(len(kept))
        self.truncated = len(self._truncated - failed)
        self.multi_page = len(set(np.flatnonzero(self._samples.pages != 1).tolist()) - failed)
        self.counts = BatchCounts.of(batch, self._context.packing.scope)
        return batch

    def _count_without_label(self, images: int) -> int:
        return count_absent(self._labels) - (len(self._labels) - images)  # empty columns have none

    @staticmethod
    def _listed(values: list[Any], counts: Sequence[int]) -> list[list[Any]]:
        """Return the values of the images as one list per pack."""
        return [values[low:high] for low, high in pairwise(accumulate(counts, initial=0))]

    def _by_pack(self, flat: np.ndarray) -> np.ndarray:
        """Return an array of all slots, or of all columns, as one row per pack."""
        return flat.reshape(len(self._counts), -1, *flat.shape[1:])

    def _close_ranks(self, failed: set[int], good: list[list[int]]) -> None:
        """Turn the slots of failed images into padding and close the gaps in numbering; no token moves."""
        packing, first, samples = self._context.packing, self._columns.first, self._columns.fields["samples"]
        for i in failed:
            slots = slice(first[i], first[i] + self._images.keep[i])
            self._patches[slots], self._segment_ids[slots], self._coords[slots] = 0, 0, 0
            if self._targets is not None:
                self._targets.clear(slots)
        for b in {int(self._column[i]) // packing.max_images for i in failed}:
            columns = self._column[good[b]] % packing.max_images
            number = np.zeros(packing.max_images + 1, np.int32)
            number[columns + 1] = np.arange(1, len(columns) + 1)
            segment_ids = self._by_pack(self._segment_ids)[b]
            segment_ids[:] = number[segment_ids]
            self._columns.close_ranks(b, columns)
            if self._numbers is not None:
                samples[b, : len(columns)] = np.cumsum(np.diff(samples[b, : len(columns)], prepend=0) > 0)


def bytes_of(pixels: np.ndarray) -> np.ndarray:
    """Return contiguous pixels (height, width, C) as uint8 (height, width, bytes per pixel)."""
    return pixels if pixels.dtype == np.uint8 else pixels.view(np.uint8)


def mirrored(pixels: np.ndarray, flip: int) -> np.ndarray:
    """Return contiguous pixels (height, width, C) mirrored as `Images.flip` says, contiguous."""
    stored = bytes_of(pixels)
    # A buffer begins at an odd address, which values of several bytes must not.
    out = _buffers.acquire(stored.shape) if pixels.dtype == np.uint8 else np.empty_like(stored)
    mirror(stored, bool(flip & 1), bool(flip & 2), out)
    return out.view(pixels.dtype)


def tuples(*columns: np.ndarray) -> list[tuple[int, ...]]:
    """Return the rows of the columns as tuples of Python integers."""
    return list(zip(*(column.tolist() for column in columns), strict=True))
