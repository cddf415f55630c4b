"""Samples of an index: their bytes, labels and other members, read from shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, groupby, repeat
from typing import Any, Self

import numpy as np
import xxhash

from patchnpack.loaders.assembly.builders.batch_builder import BatchBuilder
from patchnpack.loaders.assembly.builders.decoded_batch_builder import tuples
from patchnpack.loaders.assembly.builders.sample_batch_builder import builder_of
from patchnpack.loaders.assembly.context import BatchContext
from patchnpack.loaders.assembly.encoded import EncodedRows, encoded_rows
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.imaging.decode import decode_whole_jpeg
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.formats import JPEG
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.warnings import Warn
from patchnpack.loaders.index.table import Index
from patchnpack.loaders.labels.labels import KnownLabels, Labels
from patchnpack.loaders.members import decode_member
from patchnpack.loaders.order.order import Pack
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.shards.reader import ShardReader
from patchnpack.packer import Images, Packing, Rows, plan

# M images in the batch

_NO_IMAGES = plan(Rows.of_sizes([], []), Packing()).images


@dataclass(frozen=True, kw_only=True, slots=True)
class IndexedBatchContext(BatchContext):
    """The batch context of a loader whose images an index locates.

    Attributes:
        index: says where each image lies.
        reader: reads bytes from the index's shards.
        labels: the label of each row.
    """

    index: Index
    reader: ShardReader
    labels: Labels | KnownLabels

    def fresh(self) -> Self:
        """Return the context of a new iterator: the same, without the state that iterators must not share."""
        return self

    def builder(self, packs: Sequence[Pack], patch_size: int, *, epoch: int, step: int, position: int) -> BatchBuilder:
        """Return the builder of the batch that holds these packs."""
        images, counts = images_of(packs)
        return builder_of(self, images, counts, patch_size, epoch=epoch, step=step, position=position)

    def samples(self, rows: np.ndarray, page: np.ndarray | None = None) -> IndexedSamples:
        """Return the samples of these rows of the index, int64 (M,); for `page` see `BatchContext`."""
        return IndexedSamples(self, rows, page)

    def for_packing(self) -> Self:
        """Return the context that packed folders are written with: its index lists the members that they keep."""
        return self

    def encoded(self, rows: np.ndarray) -> EncodedRows:
        """Return the encoded images and the members of these rows, int64 (M,).

        Raises:
            OSError: the source has changed since it was indexed.
        """
        return encoded_rows(self.index, self.reader, rows, self.samples(rows))

    def bad_row(self, row: int, stage: str, reason: str, page: int | None = None) -> BadRow:
        """Return the record of a row, or of one of its images by its page, that could not be used."""
        index = self.index
        file, offset = index.place(row)
        if page is None:
            page = 0 if index.samples is None else int(index.samples.page[row])
        return BadRow(
            row=row,
            key=index.keys[row],
            shard=redact(file),
            offset=offset,
            stage=stage,
            reason=reason,
            page=page,
        )

    def member(self, row: int, extension: str) -> bytes | None:
        """Return the bytes of one member of a row's sample, None where the sample lacks it."""
        return read_member(self.index, self.reader, row, extension)


def images_of(packs: Sequence[Pack]) -> tuple[Images, list[int]]:
    """Return the images of the packs, pack by pack, and the number of images in each pack."""
    parts: list[Images] = []
    counts: list[int] = []
    for _, group in groupby(packs, lambda pack: id(pack.plan)):  # nearly always, all packs are of one plan
        first, *others = group
        if first.plan is None:
            counts += [0] * (1 + len(others))
            continue
        numbers = np.array([first.number, *(pack.number for pack in others)])
        begins, ends = first.plan.offsets[numbers].tolist(), first.plan.offsets[numbers + 1].tolist()
        ranges = list(map(range, begins, ends))
        counts += map(len, ranges)
        parts.append(first.plan.images.take(np.fromiter(chain.from_iterable(ranges), np.int64)))
    return (parts[0] if len(parts) == 1 else Images.concatenate(parts or [_NO_IMAGES])), counts


def read_member(index: Index, reader: ShardReader, row: int, extension: str) -> bytes | None:
    """Return the bytes of one member of a row's sample, None where the sample lacks it."""
    if extension not in index.members:
        return None
    offset, nbytes = index.members[extension][row].tolist()
    if offset < 0:
        return None
    return reader.read_member(int(index.shard_of(row)), offset, nbytes)


class IndexedSamples:
    """The samples of one batch's M rows; see `Samples`."""

    def __init__(self, context: IndexedBatchContext, rows: np.ndarray, page: np.ndarray | None = None) -> None:
        index = context.index
        shard = index.shard_of(rows)
        self.width, self.height, self.pages = index.width[rows], index.height[rows], index.pages[rows]
        # Python integers: reading them from arrays one by one would cost more than everything else here.
        self._context, self._rows = context, rows
        self._bytes = tuples(shard, index.offset[rows], index.nbytes[rows], index.digest[rows])
        self._sizes = tuples(self.width, self.height)
        upright_jpeg = (index.orientation[rows] == 1) & (index.format[rows] == JPEG)
        self._upright_jpeg = (upright_jpeg & (not context.packing.by_bands)).tolist()
        self.keys = index.keys.listed(rows)
        self._page = page
        self.labels = context.labels.known(rows)

    def shard(self, i: int) -> str:
        """Return the shard of image i, without credentials."""
        return redact(self._context.index.place(int(self._rows[i]))[0])

    def continued(self) -> np.ndarray:
        """Return whether each image comes from the same bytes as the one before it, bool (M,)."""
        index, rows = self._context.index, self._rows
        return repeats(index.shard_of(rows), index.offset[rows])

    def shares(self, extension: str) -> np.ndarray:
        """Return whether each image has the same member of an extension as the one before it, bool (M,)."""
        index, rows = self._context.index, self._rows
        return repeats(index.shard_of(rows), *index.members[extension][rows].T)

    def read(self, i: int) -> bytes:
        """Read the encoded bytes of image i and compare them with the digest in the index.

        Raises:
            BadImage: the bytes differ.
            OSError: the shard has changed since it was indexed.
        """
        shard, offset, nbytes, digest = self._bytes[i]
        reader = self._context.reader
        data = reader.read(shard, offset, nbytes)
        if xxhash.xxh3_64_intdigest(data) != digest:
            if (modified := reader.modified(shard, offset)) is not None:
                raise OSError(modified)
            raise BadImage("its bytes differ from the indexed ones: the digest differs", "read")
        return data

    def decode(
        self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool, warn: Warn
    ) -> np.ndarray:
        """Decode image i upright and resize its `box` to `size`; `warn` gets what is odd. Raises BadImage."""
        context = self._context
        if size == self._sizes[i] and self._upright_jpeg[i] and box is None and context.user_decode is None:
            return decode_whole_jpeg(data, size, context.packing.image_mode, strict, warn)
        index, row, (width, height) = context.index, self._rows[i], self._sizes[i]
        orientation, format = int(index.orientation[row]), int(index.format[row])
        header = Header(width, height, orientation, format, 1, int(index.bands[row]), int(index.dtype[row]))
        return context.pixels(self.keys[i], data, header, size, box, strict, warn)

    def decode_run(
        self,
        which: range,
        data: Any,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, ...] | None],
        strict: bool,
        warn: Warn,
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield images that come from the same bytes, in order, or why one is bad; see `Samples`."""
        first, page, index = which.start, self._page, self._context.index
        paged = self._is_paged(first)
        if len(which) == 1 and not paged:
            try:
                yield self.decode(first, data, sizes[0], boxes[0], strict, warn)
            except BadImage as error:
                yield error
            return
        headers = index.headers(self._rows[which.start : which.stop])
        pages = repeat(0) if page is None else page[which.start : which.stop].tolist()
        wanted = list(map(Wanted, pages, headers, sizes, boxes))
        yield from self._context.pixels_of_pages(self.keys[first], data, wanted, strict, warn, paged=paged)

    def _is_paged(self, i: int) -> bool:
        """Return whether image i is one of several pages or frames of its file, which are all in the index."""
        samples, row = self._context.index.samples, int(self._rows[i])
        if samples is None:
            return False
        follows = row + 1 < len(samples.page) and samples.page[row + 1] > 0
        return bool(samples.page[row] > 0 or samples.frames[row] > 1 or follows)

    def label(self, i: int) -> Any:
        """Return the label of image i's sample, `absent` where it has none."""
        return self._context.labels.of(int(self._rows[i]))

    def extra(self, i: int, extension: str) -> Any:
        """Return the value of another member of the sample, None where the sample lacks it. Raises BadImage."""
        kind = self._context.index.kinds.get(extension, extension)
        return extra(extension, kind, self._context.member(int(self._rows[i]), extension))

    def member(self, i: int, name: str) -> Any:
        """Return what a target reads: another member of the sample, None where the sample lacks it. Raises BadImage."""
        return self.extra(i, name)

    def file(self, i: int, path: str) -> bytes | None:
        """Return the file that a cell of a table of paths names, beside its images; None for other sources."""
        index, row = self._context.index, int(self._rows[i])
        table = index.table_of(int(index.shard_of(row)))
        return None if table is None else table.read_beside(int(index.offset[row]), path, self._context.reader.opener)

    def orientation(self, i: int) -> int:
        """Return the EXIF orientation of image i."""
        return int(self._context.index.orientation[self._rows[i]])

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """Return the record of image i, which could not be used."""
        page = None if self._page is None else int(self._page[i])
        return self._context.bad_row(int(self._rows[i]), stage, reason, page)


def repeats(*columns: np.ndarray) -> np.ndarray:
    """Return whether each item equals the one before it in all columns, bool (M,)."""
    same = np.ones(len(columns[0]), np.bool_)
    same[:1] = False
    for column in columns:
        same[1:] &= column[1:] == column[:-1]
    return same


def extra(extension: str, kind: str, data: bytes | None) -> Any:
    """Return the value of a member, None where it is absent; see `decode_member`.

    Raises:
        BadImage: the bytes are not of this kind.
    """
    try:
        return None if data is None else decode_member(data, kind)
    except (ValueError, RecursionError) as error:  # brackets nested thousands deep
        raise BadImage(f"its .{extension} member cannot be read: {error}", "extras") from error
