"""The batch context: everything that the images of a batch are made with, except the images themselves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, Protocol

import numpy as np

from patchnpack.loaders.assembly.buffers import BufferPool
from patchnpack.loaders.assembly.transform import Transform
from patchnpack.loaders.error_policy import ErrorPolicy
from patchnpack.loaders.errors import BadImage, BadRow
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_pages import Wanted, decode_pages
from patchnpack.loaders.imaging.formats import OWN, PIXELS
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.user_decode import Decode, UserFormats, user_pixels
from patchnpack.loaders.imaging.values.bands import BandRequest, band_request
from patchnpack.loaders.imaging.values.decode_values import decode_pages_of_values, decode_values
from patchnpack.loaders.imaging.warnings import Warn
from patchnpack.loaders.labels.labels import LabelKind
from patchnpack.loaders.targets.target import Target
from patchnpack.packer import Packing

# M images in the batch


class Samples(Protocol):
    """The samples of a batch's M images, numbered from 0 in the order of the batch.

    Attributes:
        keys: the key of each image's sample.
        width, height: int32 (M,), upright size in pixels.
        pages: int32 (M,), pages or frames of each image, of which the first is used; -1 where its header does not count
            them. 1 where all are used.
        labels: the labels, (M,) or (M, D), where they are known before anything is read; None where `label` reads each.
    """

    keys: list[str]
    labels: np.ndarray | None
    pages: np.ndarray
    width: np.ndarray
    height: np.ndarray

    def shard(self, i: int) -> str:
        """Return the shard of image i, without credentials."""
        ...

    def continued(self) -> np.ndarray:
        """Return whether each image comes from the same bytes as the one before it, bool (M,)."""
        ...

    def shares(self, extension: str) -> np.ndarray:
        """Return whether each image has the same member of an extension as the one before it, bool (M,)."""
        ...

    def read(self, i: int) -> Any:
        """Return the data that `decode` takes. Raises BadImage."""
        ...

    def decode(
        self, i: int, data: Any, size: tuple[int, int], box: tuple[int, ...] | None, strict: bool, warn: Warn
    ) -> np.ndarray:
        """Decode image i upright and resize its `box` to `size`; `warn` gets what is odd. Raises BadImage."""
        ...

    def decode_run(
        self,
        which: range,
        data: Any,
        sizes: Sequence[tuple[int, int]],
        boxes: Sequence[tuple[int, ...] | None],
        strict: bool,
        warn: Warn,
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield images that come from the same bytes, in order, each as `decode` makes it, or why it is bad."""
        ...

    def label(self, i: int) -> Any:
        """Return the label of image i, which was read, `absent` where it has none. Raises BadImage."""
        ...

    def extra(self, i: int, extension: str) -> Any:
        """Return the value of another member of the sample of image i, which was read. Raises BadImage."""
        ...

    def member(self, i: int, name: str) -> Any:
        """Return what a target reads: a member of the sample of image i, which was read, as `extra` or as bytes.

        Raises:
            BadImage: the member cannot be read.
        """
        ...

    def file(self, i: int, path: str) -> bytes | None:
        """Return the file that a mask or a map names by its path; None where the source names no files.

        Raises:
            BadImage: the path leads out of the source's folder.
            OSError: the file cannot be read.
        """
        ...

    def orientation(self, i: int) -> int:
        """Return the EXIF orientation of image i, which was read."""
        ...

    def bad_row(self, i: int, stage: str, reason: str) -> BadRow:
        """Return the record of image i, which could not be used."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchContext(ABC):
    """Where the images of a batch come from and how they are made.

    Attributes:
        packing: what a sequence looks like.
        labels: shape and type of the labels.
        extras: the other members that the batch carries.
        transform: applied to each image; None for no transform.
        seed: seeds the generator that the transform gets.
        buffers: lends the memory of the patches.
        errors: what is done about bad images.
        user_decode: decodes encoded images before the library does; None for no such function.
        targets: what follows each image through crop, resize and flip, by name; members as the samples spell them.
        formats: the user's readers of formats, by the numbers that headers have.
    """

    packing: Packing
    labels: LabelKind
    extras: Sequence[str]
    transform: Transform | None
    seed: int
    buffers: BufferPool
    errors: ErrorPolicy
    user_decode: Decode | None = None
    targets: Mapping[str, Target] = field(default_factory=dict)
    formats: UserFormats = ()

    @property
    def bands(self) -> BandRequest | None:
        """What `packing` asks for beyond 8-bit colours; None if it asks for no more."""
        return band_request(self.packing)

    @abstractmethod
    def samples(self, rows: np.ndarray, page: np.ndarray | None = None) -> Samples:
        """Return the samples of these rows, int64 (M,). Any thread calls this, once per batch.

        `page` (M,) is the position of each image among the pages or frames of its file; None where all are 0.
        """

    def pixels(
        self,
        key: str,
        data: Any,
        header: Header,
        size: tuple[int, int],
        box: tuple[int, ...] | None,
        strict: bool,
        warn: Warn,
    ) -> np.ndarray:
        """Decode an image (encoded, PIL or array) upright and resize its `box` to `size`.

        Raises:
            BadImage: the image cannot be decoded.
        """
        packing = self.packing
        if header.format >= OWN:
            data = self.formats[header.format - OWN].pixels(data, header, 0, key)
        elif self.user_decode is not None and isinstance(data, bytes):
            data, header = user_pixels(self.user_decode, data, header, packing, key)
        if self.bands is not None and self.bands.takes(header):
            return decode_values(
                data, header, size, box, self.bands, interpolation=packing.interpolation, strict=strict, warn=warn
            )
        return decode(
            data,
            header,
            size,
            box,
            mode=packing.image_mode,
            interpolation=packing.interpolation,
            scaled=packing.scaled_decode,
            strict=strict,
            warn=warn,
        )

    def pixels_of_pages(
        self, key: str, data: Any, wanted: Sequence[Wanted], strict: bool, warn: Warn, *, paged: bool = False
    ) -> Iterator[np.ndarray | BadImage]:
        """Yield several images of one file as `pixels` makes each, or why it is bad.

        A `decode` function does not get files that are `paged`: it could not know which page is wanted.
        """
        packing = self.packing
        if wanted[0].header.format >= OWN:
            yield from self._pixels_of_own_pages(key, data, wanted, strict, warn)
            return
        if self.user_decode is not None and isinstance(data, bytes) and not paged:
            try:
                data, header = user_pixels(self.user_decode, data, wanted[0].header, packing, key)
            except BadImage as error:
                yield from repeat(error, len(wanted))
                return
            wanted = [item._replace(header=header) for item in wanted]
        if self.bands is not None and any(self.bands.takes(item.header) for item in wanted):
            yield from decode_pages_of_values(
                data, wanted, self.bands, interpolation=packing.interpolation, strict=strict, warn=warn
            )
            return
        yield from decode_pages(
            data,
            wanted,
            mode=packing.image_mode,
            interpolation=packing.interpolation,
            scaled=packing.scaled_decode,
            strict=strict,
            warn=warn,
        )

    def _pixels_of_own_pages(
        self, key: str, data: Any, wanted: Sequence[Wanted], strict: bool, warn: Warn
    ) -> Iterator[np.ndarray | BadImage]:
        """`pixels_of_pages` for a file that a user's reader reads. Each page is decoded once, in the order wanted."""
        reader = self.formats[wanted[0].header.format - OWN]
        page, values = -1, np.zeros(0)
        for number, header, size, box in wanted:
            try:
                if number != page:
                    page, values = -1, reader.pixels(data, header, number, key)
                    page = number
                yield self.pixels(key, values, header._replace(format=PIXELS), size, box, strict, warn)
            except BadImage as error:
                yield error
