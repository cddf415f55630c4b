"""Decoding several images of one file: its pages or frames in one pass, and several parts of each from one decode."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import (
    check_size,
    decode,
    in_mode,
    load_frame,
    read_jpeg_to_resize,
    read_pixels,
    resize_jpeg,
    resize_part,
    stored_part,
    upright,
)
from patchnpack.loaders.imaging.formats import find_reader, is_video
from patchnpack.loaders.imaging.header import BAD_DATA, Header, bad_image, decode_errors_as_bad_image
from patchnpack.loaders.imaging.readers.codecs import take_messages
from patchnpack.loaders.imaging.warnings import MESSAGE, Warn, ignore
from patchnpack.packer.config import ImageMode, Interpolation


class Wanted(NamedTuple):
    """An image to make from a file.

    Attributes:
        page: position among the pages or frames of the file.
        header: of this page, from `page_headers` or the index.
        size: (width, height) in pixels, upright, of the image to make.
        box: (left, top, width, height) in pixels, upright: the part of the page to use. None uses the whole page.
    """

    page: int
    header: Header
    size: tuple[int, int]
    box: tuple[int, ...] | None = None


class _Options(NamedTuple):
    """How `decode` makes images; see there."""

    mode: ImageMode
    interpolation: Interpolation
    scaled: bool
    strict: bool
    warn: Warn


_Data = bytes | Image.Image | np.ndarray
_Make = Callable[[Wanted], np.ndarray]  # makes an image of a page whose pixels are there
_Pixels = np.ndarray | Image.Image


def decode_pages(
    data: bytes | Image.Image | np.ndarray,
    wanted: Sequence[Wanted],
    *,
    mode: ImageMode = "RGB",
    interpolation: Interpolation = "bicubic",
    scaled: bool = True,
    strict: bool = True,
    warn: Warn = ignore,
) -> Iterator[np.ndarray | BadImage]:
    """Yield each wanted image of a file, in order: what `decode` returns of its page, or the `BadImage` that it raises.

    A bad page does not end the iteration: a damaged frame leaves the others usable. Pages are decoded in one forward
    pass over the file and once each, however many parts of them are wanted. Nothing is held but the page at hand, as
    long as pages are wanted in ascending order.

    Args:
        data: the encoded file, a PIL image, or an array, which has one page.
        wanted: the images to make. They may repeat.
        mode, interpolation, strict: as in `decode`.
        scaled: decode a JPEG at the lowest scale that suffices for all its wanted parts. Without it, each part has the
            pixels that `decode` gives it alone.
        warn: as in `decode`; called once per page, not per part.
    """
    options = _Options(mode, interpolation, scaled, strict, warn)
    places: dict[int, list[int]] = {}  # in `wanted`, of each page
    for place, item in enumerate(wanted):
        places.setdefault(item.page, []).append(place)
    pages = {page: [wanted[place] for place in places[page]] for page in sorted(places)}
    waiting: dict[int, np.ndarray | BadImage] = {}  # pages may be wanted in another order than that of the file
    following = 0
    for page, make in zip(pages, _makers(data, pages, options), strict=True):
        for place, item in zip(places[page], pages[page], strict=True):
            waiting[place] = _made(make, item)
            while following in waiting:
                yield waiting.pop(following)
                following += 1


def _made(make: _Make | BadImage, item: Wanted) -> np.ndarray | BadImage:
    try:
        return make if isinstance(make, BadImage) else make(item)
    except BadImage as error:
        return error


def _makers(data: _Data, pages: dict[int, list[Wanted]], options: _Options) -> Iterator[_Make | BadImage]:
    """How the images of each page are made, or why none can be. Each is valid until the next is asked for."""
    if isinstance(data, Image.Image):
        count = getattr(data, "n_frames", 1)
        for page, items in pages.items():
            yield _attempt(functools.partial(_image_page, data, page, count, items, options))
        return
    reader = find_reader(data) if isinstance(data, bytes) else None
    frames = None if reader is None else reader.frames
    # Of an animation, the format's own decoder gives the first frame at less cost. A video has no other.
    if isinstance(data, bytes) and frames is not None and (list(pages) != [0] or is_video(data)):
        yield from _frames(data, frames(data, list(pages)), pages, options)
        return
    for page, items in pages.items():
        yield _attempt(functools.partial(_lone_page, data, page, items, options))


def _attempt(read: Callable[[], _Make]) -> _Make | BadImage:
    try:
        return read()
    except BadImage as error:
        return error


def _lone_page(data: bytes | np.ndarray, page: int, items: Sequence[Wanted], options: _Options) -> _Make:
    """How images are made of a page that does not depend on others."""
    if page:
        reader = find_reader(data) if isinstance(data, bytes) else None
        if reader is None or reader.page is None or not isinstance(data, bytes):
            raise BadImage(f"page {page} is wanted, and only its first is decoded")
        with decode_errors_as_bad_image():
            data = reader.page(data, page)
    if len(items) == 1 or isinstance(data, np.ndarray):
        return lambda item: decode(data, item.header, item.size, item.box, **options._asdict())
    header = items[0].header
    parts = [stored_part(header, item.size, item.box) for item in items]
    stored = parts[0][0]
    if not header.direct:
        return _maker(read_pixels(data, stored, options.warn), data, items, options)
    jpeg = read_jpeg_to_resize(
        data, stored, [part for _, part in parts], options.mode, options.scaled, options.strict, options.warn
    )

    def make(item: Wanted) -> np.ndarray:
        part = stored_part(header, item.size, item.box)[1]
        return upright(resize_jpeg(jpeg, stored, part, options.mode, options.interpolation), header)

    return make


def _image_page(image: Image.Image, page: int, frames: int, items: Sequence[Wanted], options: _Options) -> _Make:
    """How images are made of a page of a PIL image."""
    if frames == 1 and not page:
        return lambda item: decode(image, item.header, item.size, item.box, **options._asdict())
    stored = stored_part(items[0].header, items[0].size, None)[0]
    return _maker(load_frame(image, page, stored), image, items, options)


def _frames(
    data: bytes, found: Iterator[_Pixels | Exception], pages: dict[int, list[Wanted]], options: _Options
) -> Iterator[_Make | BadImage]:
    """How images are made of frames that are decoded one after the other. All behind an error are bad."""
    error: BadImage | None = None
    for items in pages.values():
        if error is not None:
            yield error
            continue
        take_messages()
        try:
            pixels = next(found)
        except BAD_DATA as raised:
            error = bad_image(raised)
            yield error
            continue
        if take_messages():
            options.warn(MESSAGE)
        if isinstance(pixels, Exception):
            yield bad_image(pixels)
        else:
            yield _attempt(functools.partial(_maker, pixels, data, items, options))


def _maker(pixels: _Pixels, data: bytes | Image.Image, items: Sequence[Wanted], options: _Options) -> _Make:
    """How images are made of the stored pixels of a page."""
    header, mode = items[0].header, options.mode
    check_size(pixels, stored_part(header, items[0].size, None)[0])
    if len(items) > 1:
        image = Image.fromarray(np.ascontiguousarray(pixels)) if isinstance(pixels, np.ndarray) else pixels
        pixels = in_mode(image, mode)

    def make(item: Wanted) -> np.ndarray:
        part = stored_part(header, item.size, item.box)[1]
        return upright(resize_part(pixels, part, mode, options.interpolation, data), header)

    return make
