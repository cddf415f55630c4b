"""Samples of a data set: image, label and other members come with one read of the item."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
import xxhash
from PIL import Image

from patchnpack.loaders.assembly.builders.decoded_batch_builder import tuples
from patchnpack.loaders.assembly.encoded import HEADER, ByteStrings, EncodedRows
from patchnpack.loaders.assembly.samples import IndexedBatchContext, IndexedSamples, repeats
from patchnpack.loaders.datasets.adapter import Picture
from patchnpack.loaders.datasets.items import Items
from patchnpack.loaders.datasets.labels import ItemLabels
from patchnpack.loaders.datasets.pictures import is_stored, load, read_file, stored_bytes
from patchnpack.loaders.datasets.stored_members import (
    dense_members,
    packed_index,
    stored_dense_member,
    stored_member,
)
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.encode import encode_pixels
from patchnpack.loaders.imaging.formats import PIXELS, PNG
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, image_header, read_header
from patchnpack.loaders.imaging.pages import Pages, refusal_of_pages
from patchnpack.loaders.imaging.user_decode import own_format
from patchnpack.loaders.imaging.warnings import Warn

# M images in the batch


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetContext(IndexedBatchContext):
    """The batch context of a data set; `reader` is never asked for bytes.

    Attributes:
        items: the images.
        pages: what is done about files of several pages.
        labels: the label of each item.
    """

    items: Items
    pages: Pages
    labels: ItemLabels

    def samples(self, rows: np.ndarray, page: np.ndarray | None = None) -> DatasetSamples:
        """Return the samples of these rows of the index, int64 (M,); for `page` see `BatchContext`."""
        return DatasetSamples(self, rows, page)

    def for_packing(self) -> Self:
        """Return the context that packed folders are written with: its index lists the label and the extras."""
        return replace(self, index=packed_index(self.index, self.items, self.labels, self.extras, self.targets))

    def encoded(self, rows: np.ndarray) -> EncodedRows:
        """Return the encoded images, the labels and the extras of these rows, int64 (M,).

        Raises:
            OSError, RuntimeError, ValueError: as `DatasetSamples.read`.
            ValueError: a label or an extra cannot be stored, or an image exceeds `max_bytes` once it is encoded.
        """
        samples = self.samples(rows)
        images = [samples.encoded(i) for i in range(len(rows))]
        members = {
            name: ByteStrings.of([samples.encoded_member(i, name, kind) for i in range(len(rows))])
            for name, kind in self.index.kinds.items()
        }
        index = self.index
        told = {
            "nbytes": [len(data) for data, _, _ in images],
            "orientation": [header.orientation for _, header, _ in images],
            "format": [header.format for _, header, _ in images],
            "digest": [digest for _, _, digest in images],
            "members": {name: part.sizes.tolist() for name, part in members.items()},
        }
        return EncodedRows(
            image=ByteStrings.of([data for data, _, _ in images]),
            members=members,
            header={
                name: np.array(told.get(name, column[rows]), column.dtype)
                for name, column in ((name, getattr(index, name)) for name in HEADER)
            },
            bad=samples.bad,
            told=told,
        )


class DatasetSamples(IndexedSamples):
    """The samples of one batch's M rows; see `Samples`."""

    def __init__(self, context: DatasetContext, rows: np.ndarray, page: np.ndarray | None = None) -> None:
        super().__init__(context, rows, page)
        self.has_labels = context.labels.has_labels
        if context.labels.is_read:
            self.labels = None
        items, index = context.items, context.index
        self._of, self._row_list = context, rows.tolist()
        self._items = items.adapter[rows], items.row[rows]
        self._numbers = items.number[rows]
        self._places = tuples(*self._items, self._numbers)
        self._is_known = (index.format[rows] != PIXELS).tolist()
        self._members: list[Mapping[str, Any]] = [{}] * len(rows)
        self._headers: dict[int, Header] = {}  # those that are read with the image
        self.bad: list[BadRow] = []  # of those that were encoded

    def continued(self) -> np.ndarray:
        """Return whether each image is made of the same image of an item as the one before it, bool (M,)."""
        return repeats(*self._items, self._numbers)

    def shares(self, extension: str) -> np.ndarray:
        """Return whether each image is of the same item as the one before it, bool (M,)."""
        return repeats(*self._items)

    def read(self, i: int) -> Any:
        """Read item i and compare its image with the index.

        Raises:
            BadImage: the image is missing or damaged.
            OSError: the encoded bytes differ from those whose header was read, or a file cannot be read.
            RuntimeError: the data set raised an error.
            ValueError: the image has another size, or is of a type that the loader cannot use.
        """
        adapter, row, number = self._places[i]
        try:
            image, self._members[i] = self._of.items.adapters[adapter].read(row, number)
        except (OSError, RuntimeError, ValueError) as error:
            error.add_note(f"raised for {self._of.items.describe(self._row_list[i])}")
            raise
        if self._is_known[i] and isinstance(image, bytes):
            if xxhash.xxh3_64_intdigest(image) != self._bytes[i][3]:
                raise OSError(
                    f"the bytes of {self._of.items.describe(self._row_list[i])} have changed since its size was read: "
                    "make the loader again and, if sizes are cached, give another fingerprint="
                )
            return image
        header = self._header(image)
        width, height = self._sizes[i]
        if (header.width, header.height) != (width, height):
            raise ValueError(
                f"{self._of.items.describe(self._row_list[i])} has {header.width}x{header.height} pixels, and the plan "
                f"was made for {width}x{height}: the items must not change, so remove random crops and resizing from "
                "the data set, and give the loader transform= or a resolution; if sizes are given or cached, correct "
                "sizes= or change fingerprint="
            )
        if self._of.pages == "error" and header.pages != 1:
            raise BadImage(refusal_of_pages(header.pages))
        self._headers[i] = header
        if isinstance(image, Image.Image):
            load(image)
        return image

    def _header(self, image: Picture) -> Header:
        bands = self._of.bands
        if not isinstance(image, bytes):
            header = image_header(image, values=bands is not None)
        else:
            try:
                own = own_format(self._of.formats, image)
                header = read_header(image) if own is None else own.header(image)
            except UnsupportedImage as error:
                if self._of.user_decode is None and bands is None:
                    raise
                header = error.header
        if bands is not None and self._of.user_decode is None:
            bands.check(header)
        return header

    def decode(
        self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool, warn: Warn
    ) -> np.ndarray:
        """Decode image i upright and resize its `box` to `size`; `warn` gets what is odd. Raises BadImage."""
        header = self._headers.get(i)
        if header is None:
            return super().decode(i, data, size, box, strict, warn)
        return self._of.pixels(self.keys[i], data, header, size, box, strict, warn)

    def decode_run(
        self,
        which: range,
        data: Any,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, ...] | None],
        strict: bool,
        warn: Warn,
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield images that are made of the same image of an item, or why one is bad; see `Samples`."""
        header = self._headers.get(which.start)
        if header is None:
            yield from super().decode_run(which, data, sizes, boxes, strict, warn)
            return
        wanted = [Wanted(0, header, size, box) for size, box in zip(sizes, boxes, strict=True)]
        yield from self._of.pixels_of_pages(self.keys[which.start], data, wanted, strict, warn)

    def encoded(self, i: int) -> tuple[bytes, Header, int]:
        """Read image i and its label; return encoded bytes, their header and their digest.

        Encoded items are returned as they are, decoded ones as `encode_pixels` encodes them. An image that cannot be
        read is noted in `bad`, and has no bytes: they are bad wherever they are read.
        """
        context, row = self._of, self._row_list[i]
        try:
            image = self.read(i)
            if isinstance(image, bytes):
                data, header = image, self._headers.get(i) or context.index.headers(self._rows[i : i + 1])[0]
            else:
                data, header = encode_pixels(image, self._headers[i], context.packing)
        except BadImage as error:
            self.bad.append(self.bad_row(i, error.stage, str(error)))
            return b"", Header(self._sizes[i][0], self._sizes[i][1], 1, PNG), xxhash.xxh3_64_intdigest(b"")
        if len(data) > context.errors.max_bytes:
            raise ValueError(
                f"{context.items.describe(row)} has {len(data)} bytes as it is packed; the limit is max_bytes "
                f"{context.errors.max_bytes}: raise max_bytes of ErrorPolicy, or choose store='patches'"
            )
        if context.labels.is_read:
            try:
                self.label(i)
            except BadImage as error:  # as whoever reads the packs will find it
                self.bad.append(self.bad_row(i, error.stage, str(error)))
        return data, header, xxhash.xxh3_64_intdigest(data)

    def encoded_member(self, i: int, name: str, kind: str) -> bytes | None:
        """Return the bytes of a member of an item that was read, None where it has none. Raises ValueError."""
        row, context = self._row_list[i], self._of
        if name not in dense_members(context.targets, context.extras):
            return stored_member(context.items, row, name, self._members[i].get(name), kind)
        try:
            value = self.member(i, name)
            if isinstance(value, str):
                value = self.file(i, value)
            return stored_dense_member(context.items, row, name, value)
        except (BadImage, OSError) as error:
            if all(bad.row != row for bad in self.bad):
                self.bad.append(self.bad_row(i, "targets", f"its .{name} member cannot be used: {error}"))
            return None

    def label(self, i: int) -> Any:
        """Return the label of image i, `absent` where it has none. Raises BadImage."""
        return self._of.labels.of_members(self._row_list[i], self._members[i])

    def extra(self, i: int, extension: str) -> Any:
        """Return another member of the item, None where it has none."""
        return self._members[i].get(extension)

    def member(self, i: int, name: str) -> Any:
        """Return what a target reads: another member of the item; images of Hugging Face as bytes. Raises BadImage."""
        value = self.extra(i, name)
        if not is_stored(value):
            return value
        if value["bytes"] is None and not value["path"]:
            return None
        return stored_bytes(value["bytes"], value["path"], self._of.items.describe(self._row_list[i]))

    def file(self, i: int, path: str) -> bytes:
        """Return the file that an item names by its path, as it may name its image."""
        return read_file(path, self._of.items.describe(self._row_list[i]))

    def orientation(self, i: int) -> int:
        """Return the EXIF orientation of image i, which was read."""
        header = self._headers.get(i)
        return super().orientation(i) if header is None else header.orientation
