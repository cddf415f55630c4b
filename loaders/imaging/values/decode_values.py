"""Decoding by bands: from an encoded image, or an array, to upright values of the planned size, at any depth."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import check_size, load_frame, read_jpeg, stored_part
from patchnpack.loaders.imaging.formats import reader_of
from patchnpack.loaders.imaging.header import BAD_DATA, Header, bad_image, decode_errors_as_bad_image
from patchnpack.loaders.imaging.readers import by_pil
from patchnpack.loaders.imaging.readers.codecs import take_messages
from patchnpack.loaders.imaging.readers.depth import turned
from patchnpack.loaders.imaging.values.bands import BandRequest, asked_values, resize_values, values_of
from patchnpack.loaders.imaging.warnings import MESSAGE, SECOND_DECODER, Warn, ignore
from patchnpack.packer.config import Interpolation

_Pixels = np.ndarray | Image.Image


class _Wanted(Protocol):
    """What `decode_pages.Wanted` says."""

    @property
    def page(self) -> int: ...
    @property
    def header(self) -> Header: ...
    @property
    def size(self) -> tuple[int, int]: ...
    @property
    def box(self) -> tuple[int, ...] | None: ...


def decode_values(
    data: bytes | Image.Image | np.ndarray,
    header: Header,
    size: tuple[int, int],
    box: tuple[int, ...] | None,
    request: BandRequest,
    *,
    interpolation: Interpolation = "bicubic",
    strict: bool = True,
    warn: Warn = ignore,
) -> np.ndarray:
    """Decode an image upright by its bands and resize it: contiguous (height, width, C) of the type that is asked for.

    Args:
        data: the encoded image, a PIL image, or an array.
        header: its header, from `read_header` or `image_header`.
        size: (width, height) in pixels, upright.
        box: (left, top, width, height) in pixels, upright: the part to use. None uses the whole image.
        request: the bands and the type to return, and how others become these.
        interpolation, strict, warn: as in `decode`.

    Raises:
        BadImage: the data cannot be decoded, do not match the header, or are of another kind than is asked for.
    """
    return _made(_asked(*_read(data, header, strict, warn), header, request), header, size, box, interpolation)


def decode_pages_of_values(
    data: bytes | Image.Image | np.ndarray,
    wanted: Sequence[_Wanted],
    request: BandRequest,
    *,
    interpolation: Interpolation = "bicubic",
    strict: bool = True,
    warn: Warn = ignore,
) -> Iterator[np.ndarray | BadImage]:
    """Yield several images of one file as `decode_values` makes each, or why it is bad; see `decode_pages`."""
    pages = sorted({item.page for item in wanted})
    headers = {item.page: item.header for item in wanted}
    found: dict[int, np.ndarray | BadImage] = {}  # values of the pages that are still wanted
    read = _pages(data, pages, headers, request, strict, warn)
    last = {item.page: place for place, item in enumerate(wanted)}
    for place, item in enumerate(wanted):
        while item.page not in found:
            page, values = next(read)
            found[page] = values
        values = found[item.page]
        if last[item.page] == place:
            del found[item.page]
        if isinstance(values, BadImage):
            yield values
            continue
        try:
            yield _made(values, item.header, item.size, item.box, interpolation)
        except BadImage as error:
            yield error


def _made(
    values: np.ndarray, header: Header, size: tuple[int, int], box: tuple[int, ...] | None, interpolation: Interpolation
) -> np.ndarray:
    _, (region, target) = stored_part(header, size, box)
    out = np.ascontiguousarray(turned(resize_values(values, region, target, interpolation), header.orientation))
    return out if out.flags.writeable else out.copy()  # what lies in encoded bytes is not


def _asked(pixels: _Pixels, bits: int, header: Header, request: BandRequest) -> np.ndarray:
    return asked_values(values_of(pixels, header), request, header, bits)


def _read(data: bytes | _Pixels, header: Header, strict: bool, warn: Warn) -> tuple[_Pixels, int]:
    """The stored pixels of the first page, and the bits of each value."""
    stored = stored_part(header, (header.width, header.height), None)[0]
    if isinstance(data, np.ndarray):
        return data, 8 * data.dtype.itemsize
    if isinstance(data, Image.Image):
        image = load_frame(data, 0, stored) if getattr(data, "n_frames", 1) > 1 else _loaded(data, stored)
        return image, 16 if image.mode.startswith("I;16") else 8
    if header.direct and header.bands in (1, 3):
        return read_jpeg(data, stored, "L" if header.bands == 1 else "RGB", strict, warn), 8
    reader = reader_of(data)
    bits = 8
    take_messages()
    with decode_errors_as_bad_image():
        if reader.decoder != "PIL":
            facts = reader.header(data)
            bits = facts.bits
            if (facts.width, facts.height) != stored:
                raise BadImage(f"its header says {facts.width}x{facts.height} pixels; {stored[0]}x{stored[1]} before")
        try:
            pixels = (reader.values or reader.decode)(data)
        except BAD_DATA:
            if reader.second is None or bits > 8:
                raise
            pixels = by_pil.decode(reader.second, data)
            warn(SECOND_DECODER)
        if take_messages():
            warn(MESSAGE)
    check_size(pixels, stored)
    return pixels, bits


def _loaded(image: Image.Image, stored: tuple[int, int]) -> Image.Image:
    with decode_errors_as_bad_image():
        image.load()
        check_size(image, stored)
    return image


def _pages(
    data: bytes | _Pixels,
    pages: Sequence[int],
    headers: dict[int, Header],
    request: BandRequest,
    strict: bool,
    warn: Warn,
) -> Iterator[tuple[int, np.ndarray | BadImage]]:
    """The values of each page, ascending, or why there are none."""
    reader = reader_of(data) if isinstance(data, bytes) else None
    if reader is not None and isinstance(data, bytes) and reader.frames is not None and list(pages) != [0]:
        frames: Iterator[_Pixels | Exception] = reader.frames(data, pages)
        with decode_errors_as_bad_image():
            bits = reader.header(data).bits
        for page in pages:
            yield page, _attempt(functools.partial(_frame, frames, headers[page], request, bits))
        return
    for page in pages:
        yield page, _attempt(functools.partial(_page, data, page, headers[page], request, strict, warn))


def _frame(frames: Iterator[_Pixels | Exception], header: Header, request: BandRequest, bits: int) -> np.ndarray:
    try:
        pixels = next(frames)
    except StopIteration:  # an error ended the iteration
        raise BadImage("a frame before it is damaged") from None
    except BAD_DATA as error:
        raise bad_image(error) from error
    if isinstance(pixels, Exception):
        raise bad_image(pixels)
    check_size(pixels, stored_part(header, (header.width, header.height), None)[0])
    return np.array(_asked(pixels, bits, header, request))  # PIL may change its image with the next frame


def _page(
    data: bytes | _Pixels, page: int, header: Header, request: BandRequest, strict: bool, warn: Warn
) -> np.ndarray:
    if page and isinstance(data, Image.Image):
        stored = stored_part(header, (header.width, header.height), None)[0]
        return _asked(load_frame(data, page, stored), 8, header, request)
    if page:
        reader = reader_of(data) if isinstance(data, bytes) else None
        if reader is None or reader.page is None or not isinstance(data, bytes):
            raise BadImage(f"page {page} is wanted, and only its first is decoded")
        with decode_errors_as_bad_image():
            data = reader.page(data, page)
    return _asked(*_read(data, header, strict, warn), header, request)


def _attempt(read: functools.partial[np.ndarray]) -> np.ndarray | BadImage:
    try:
        return read()
    except BadImage as error:
        return error
