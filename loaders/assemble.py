"""Assembling a batch: each image is read, decoded and written straight into its own slots, by any thread."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import xxhash

from patchnpack.loaders.buffers import BufferPool
from patchnpack.loaders.decode import BadImage, Header, decode
from patchnpack.loaders.errors import BadRow, ErrorPolicy, StallError
from patchnpack.loaders.index import Index
from patchnpack.loaders.labels import NO_LABEL, Labels
from patchnpack.loaders.shards import ShardReader
from patchnpack.loaders.transfer import redact
from patchnpack.packer import Images, PackedBatch, Packing, _kernels
from patchnpack.packer.random import Purpose, keys

# B packs in the batch, L token slots in a pack, K images in a pack at most, M images in the batch

Transform = Callable[[np.ndarray, np.random.Generator], np.ndarray]


class LabelKind(Protocol):
    """What all labels are: arrays of this shape and type, and `absent` where there is none."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    absent: Any


class Samples(Protocol):
    """The samples of a draft's M images; number i is the same one everywhere.

    Attributes:
        keys: their keys.
        shards: where each came from.
        width, height: int32 (M,), pixels, upright.
    """

    keys: list[str]
    shards: list[str]
    width: np.ndarray
    height: np.ndarray

    def read(self, i: int) -> Any:
        """What `decode` takes. Raises BadImage."""
        ...

    def decode(self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool) -> np.ndarray:
        """The image upright, the box of it resized to `size`. Raises BadImage."""
        ...

    def label(self, i: int) -> Any:
        """Its label, `absent` where there is none."""
        ...

    def extra(self, i: int, extension: str) -> Any:
        """What one of its other members holds. Raises BadImage."""
        ...

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """The record of an image that could not be used."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Making:
    """How a draft's images are made, and where they come from."""

    packing: Packing
    labels: LabelKind
    extras: Sequence[str]
    transform: Transform | None
    seed: int
    buffers: BufferPool
    errors: ErrorPolicy

    def samples(self, rows: np.ndarray) -> Samples:
        """The samples of these rows (int64); called once a draft, by any thread."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources(Making):
    """What the images of every batch are made with, where an index says where they lie."""

    index: Index
    reader: ShardReader
    labels: Labels

    def samples(self, rows: np.ndarray) -> Samples:
        """The samples of these rows of the index (int64)."""
        return _IndexedSamples(self, rows)

    def bad_row(self, row: int, stage: str, reason: str) -> BadRow:
        """The record of a row that could not be used."""
        index = self.index
        return BadRow(
            row=row,
            key=index.keys[row],
            shard=redact(index.shards[int(index.shard_of(row))]),
            offset=int(index.offset[row]),
            stage=stage,
            reason=reason,
        )

    def member(self, row: int, extension: str) -> bytes | None:
        """The bytes of one member of a row's sample, None where it has none."""
        return read_member(self.index, self.reader, row, extension)


def read_member(index: Index, reader: ShardReader, row: int, extension: str) -> bytes | None:
    """The bytes of one member of a row's sample, None where it has none."""
    if extension not in index.members:
        return None
    offset, nbytes = index.members[extension][row].tolist()
    if offset < 0:
        return None
    return reader.read(int(index.shard_of(row)), offset, nbytes)


class _IndexedSamples:
    def __init__(self, sources: Sources, rows: np.ndarray) -> None:
        index = sources.index
        shard = index.shard_of(rows)
        self.width, self.height = index.width[rows], index.height[rows]
        # As Python's own numbers: taking them out of arrays one by one would cost more than all else here.
        self._sources, self._rows = sources, rows.tolist()
        self._bytes = _tuples(shard, index.offset[rows], index.nbytes[rows])
        self._headers = index.headers(rows)
        self._digests = index.digest[rows].tolist()
        self.keys = [index.keys[row] for row in self._rows]
        self.shards = [index.shards[i] for i in shard.tolist()]

    def read(self, i: int) -> bytes:
        shard, offset, nbytes = self._bytes[i]
        data = self._sources.reader.read(shard, offset, nbytes)
        if xxhash.xxh3_64_intdigest(data) != self._digests[i]:
            if self._sources.reader.has_changed(shard):
                raise OSError(
                    f"shard {redact(self.shards[i])!r} was written to since it was indexed, and the image at byte "
                    f"{offset} is another one; bring the index up to date: patchnpack index SHARDS"
                )
            raise BadImage("its bytes are not those that were indexed: the digest differs", "read")
        return data

    def decode(self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool) -> np.ndarray:
        return decode_for(self._sources.packing, data, self._headers[i], size, box, strict)

    def label(self, i: int) -> Any:
        return self._sources.labels.of(self._rows[i])

    def extra(self, i: int, extension: str) -> Any:
        kind = self._sources.index.kinds.get(extension, extension)
        return extra(extension, kind, self._sources.member(self._rows[i], extension))

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        return self._sources.bad_row(self._rows[i], stage, reason)


def decode_for(
    packing: Packing, data: Any, header: Header, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool
) -> np.ndarray:
    """`decode`, as a packing asks for."""
    return decode(
        data,
        header,
        size,
        box,
        mode=packing.image_mode,
        interpolation=packing.interpolation,
        scaled=packing.scaled_decode,
        strict=strict,
    )


def extra(extension: str, kind: str, data: bytes | None) -> Any:
    """What a member's bytes say: of kind txt as str, json as object, others as they are. Raises BadImage."""
    if data is None:
        return None
    try:
        if kind == "json":
            return json.loads(data)
        return data.decode("utf-8") if kind == "txt" else data
    except ValueError as error:
        raise BadImage(f"its .{extension} member cannot be read: {error}", "extras") from error


def _tuples(*columns: np.ndarray) -> list[tuple[int, ...]]:
    return list(zip(*(column.tolist() for column in columns), strict=True))


class Draft:
    """A batch in the making. Threads `run` its parts in any order; `finish` waits for them and gives the batch.

    A part is an image, or, the last one, the padding of all packs. No two parts share a byte, so no lock is taken while
    they are written. The first part to run prepares the batch and the last one completes it: while a third thread, that
    of the training loop, did this, the decoding threads waited for the GIL.
    """

    def __init__(
        self,
        sources: Making,
        packs: Sequence[Images | None],
        patch_size: int,
        *,
        epoch: int,
        step: int,
        position: int,
    ) -> None:
        self.num_parts = sum(len(pack) for pack in packs if pack is not None) + 1
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
        self._patches = sources.buffers.lend((*shape, packing.token_bytes(patch_size)))
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
        self._places = _tuples(images.keep, self._pack, self._column, self._start, *images.size.T, *images.grid.T)
        whole = (images.box[:, 2] == samples.width) & (images.box[:, 3] == samples.height)
        self._boxes = None if whole.all() else _tuples(*images.box.T)
        if sources.transform is not None:
            self._transform_keys = keys(Purpose.TRANSFORM, sources.seed, self._epoch, images.key)

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
            f"{thread} is at stage {stage!r} of image {self._samples.keys[i]!r} in shard "
            f"{redact(self._samples.shards[i])!r}"
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
