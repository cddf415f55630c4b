"""Decoding: from an encoded image to upright uint8 pixels of the planned size. Every slow step releases the GIL."""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode_buffers import DecodeBuffers
from patchnpack.loaders.imaging.formats import PIL, reader_of
from patchnpack.loaders.imaging.header import BAD_DATA, Header, bad_image, decode_errors_as_bad_image
from patchnpack.loaders.imaging.readers import by_pil, jpeg
from patchnpack.loaders.imaging.readers.codecs import take_messages
from patchnpack.loaders.imaging.resize import declares_alpha, resize
from patchnpack.loaders.imaging.warnings import MESSAGE, SECOND_DECODER, Warn, ignore
from patchnpack.packer import _turns
from patchnpack.packer.config import ImageMode, Interpolation

# Sizes are (width, height) in pixels: "stored" as in the file, "upright" after EXIF orientation is applied. A region is
# (left, top, width, height) in the stored image, and a part a region with the size that it is resized to.
Region = tuple[int, int, int, int]
Part = tuple[Region, tuple[int, int]]

_JPEG_COLORS: dict[ImageMode, str] = {"L": "GRAY", "RGB": "RGB", "RGBA": "RGBA"}
# simplejpeg's colour space and PIL's mode of a JPEG to be resized. PIL stores RGB in four bytes per pixel: a buffer
# decoded in that layout is resized without a copy.
_JPEG_RESIZE_COLORS: dict[ImageMode, tuple[str, str]] = {
    "L": ("GRAY", "L"),
    "RGB": ("RGBX", "RGBX"),
    "RGBA": ("RGBA", "RGBX"),
}

_buffers = DecodeBuffers()
_load_lock = threading.Lock()  # several threads may hold the same PIL image, which cannot be loaded twice at once


def decode(
    data: bytes | Image.Image | np.ndarray,
    header: Header,
    size: tuple[int, int],
    box: tuple[int, ...] | None = None,
    *,
    mode: ImageMode = "RGB",
    interpolation: Interpolation = "bicubic",
    scaled: bool = True,
    strict: bool = True,
    warn: Warn = ignore,
) -> np.ndarray:
    """Decode an image upright and resize it to `size`: a contiguous uint8 array (height, width, C).

    Args:
        data: the encoded image, a PIL image, or an array.
        header: its header, from `read_header` or `image_header`.
        size: (width, height) in pixels, upright. Equal to the size of the image (or of the box), nothing is resized.
        box: (left, top, width, height) in pixels, upright: the part to use. None uses the whole image.
        mode: "L", "RGB" or "RGBA"; sets C.
        interpolation: PIL's name of the resizing filter.
        scaled: decode a JPEG at a lower scale if it shrinks at least twofold.
        strict: refuse a truncated JPEG. Otherwise its missing part is grey.
        warn: called with the kind of each warning, one of `WARNINGS`, about an image that is decoded all the same.

    Raises:
        BadImage: the data cannot be decoded, or do not match the header.
    """
    stored, part = stored_part(header, size, box)
    if header.direct and isinstance(data, bytes):
        pixels = _decode_jpeg(data, stored, part, mode, interpolation, scaled, strict, warn)
    elif isinstance(data, np.ndarray):
        pixels = resize_array(data, part, mode, interpolation)
    else:
        image = _loaded(data, stored) if isinstance(data, Image.Image) else read_pixels(data, stored, warn)
        pixels = resize_part(image, part, mode, interpolation, data)
    return upright(pixels, header)


def upright(pixels: np.ndarray, header: Header) -> np.ndarray:
    """Stored pixels turned as the header says."""
    return pixels if header.orientation == 1 else _turns.orient(pixels, header.orientation)


def stored_part(header: Header, size: tuple[int, int], box: tuple[int, ...] | None) -> tuple[tuple[int, int], Part]:
    """The size of the stored image, and the part of it that `box` and `size` of the upright one mean."""
    swapped = header.orientation >= 5
    stored = (header.height, header.width) if swapped else (header.width, header.height)
    region = (0, 0, *stored) if box is None else _stored_region(box, header)
    return stored, (region, size[::-1] if swapped else size)


def _stored_region(box: tuple[int, ...], header: Header) -> Region:
    """The region of the stored image that a box of the upright image covers (EXIF 2.32, tag 0x0112)."""
    left, top, width, height = box
    if header.orientation in (2, 3, 6, 7):
        left = header.width - left - width
    if header.orientation in (3, 4, 7, 8):
        top = header.height - top - height
    return (left, top, width, height) if header.orientation < 5 else (top, left, height, width)


def decode_whole_jpeg(data: bytes, stored: tuple[int, int], mode: ImageMode, strict: bool, warn: Warn) -> np.ndarray:
    """Decode a JPEG as it is stored: what `decode` does with a JPEG that it neither turns, cuts nor resizes.

    The most frequent case: a training run of photographs spends its time here.
    """
    shape = (stored[1], stored[0], len(mode))
    pixels = _buffers.acquire(shape)
    try:
        # A buffer of the stored size refuses a larger image by itself, which saves reading the header first.
        native: np.ndarray = simplejpeg.decode_jpeg(data, _JPEG_COLORS[mode], buffer=pixels, strict=strict)
    except ValueError as error:
        with decode_errors_as_bad_image():
            _check_size(jpeg.size_and_color(data)[0], stored)
            native = _decode_again(data, error, strict, warn, colorspace=_JPEG_COLORS[mode], buffer=pixels)
    except BAD_DATA as error:
        raise bad_image(error) from error
    if native.shape != shape:
        _check_size((native.shape[1], native.shape[0]), stored)
    return native


def _simplejpeg(data: bytes, strict: bool, warn: Warn, **options: Any) -> np.ndarray:
    """What `simplejpeg.decode_jpeg` returns, also for a JPEG that libjpeg only warns of."""
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(data, strict=strict, **options)
        return pixels
    except ValueError as error:
        return _decode_again(data, error, strict, warn, **options)


def _decode_again(data: bytes, error: ValueError, strict: bool, warn: Warn, **options: Any) -> np.ndarray:
    def decode(mended: bytes, strict: bool) -> np.ndarray:
        pixels: np.ndarray = simplejpeg.decode_jpeg(mended, strict=strict, **options)
        return pixels

    return jpeg.decode_with_warnings(decode, data, error, strict, warn)


def _decode_jpeg(
    data: bytes,
    stored: tuple[int, int],
    part: Part,
    mode: ImageMode,
    interpolation: Interpolation,
    scaled: bool,
    strict: bool,
    warn: Warn,
) -> np.ndarray:
    (left, top, width, height), target = part
    if target == stored and part[0] == (0, 0, *stored):
        return decode_whole_jpeg(data, stored, mode, strict, warn)
    if target == (width, height):
        native = read_jpeg(data, stored, mode, strict, warn)
        return np.ascontiguousarray(native[top : top + height, left : left + width])
    return resize_jpeg(
        read_jpeg_to_resize(data, stored, [part], mode, scaled, strict, warn), stored, part, mode, interpolation
    )


def read_jpeg(data: bytes, stored: tuple[int, int], mode: ImageMode, strict: bool, warn: Warn) -> np.ndarray:
    """All pixels of a JPEG, as it is stored."""
    with decode_errors_as_bad_image():
        _check_size(jpeg.size_and_color(data)[0], stored)
        pixels = _buffers.acquire((stored[1], stored[0], len(mode)))
        return _simplejpeg(data, strict, warn, colorspace=_JPEG_COLORS[mode], buffer=pixels)


def read_jpeg_to_resize(
    data: bytes, stored: tuple[int, int], parts: Sequence[Part], mode: ImageMode, scaled: bool, strict: bool, warn: Warn
) -> np.ndarray:
    """The pixels of a JPEG at the lowest scale that suffices for all parts, in the layout that PIL resizes."""
    # libjpeg-turbo takes its smallest scale, of 1/2 and below, at which each region is at least as large as its
    # target, or full scale if there is none. Shapes are (height, width).
    min_shape, half_shape = stored[::-1], (-(-stored[1] // 2), -(-stored[0] // 2))
    if scaled:
        rows = max(-(-stored[1] * target[1] // height) for (_, _, _, height), target in parts)
        columns = max(-(-stored[0] * target[0] // width) for (_, _, width, _), target in parts)
        min_shape = (rows, columns)
    fits_half = min_shape[0] <= half_shape[0] and min_shape[1] <= half_shape[1]
    max_shape = half_shape if fits_half else stored[::-1]
    color, pil_mode = _JPEG_RESIZE_COLORS[mode]
    with decode_errors_as_bad_image():
        _check_size(jpeg.size_and_color(data)[0], stored)
        return _simplejpeg(
            data,
            strict,
            warn,
            colorspace=color,
            min_height=min_shape[0],
            min_width=min_shape[1],
            min_factor=2,
            buffer=_buffers.acquire((*max_shape, len(pil_mode))),
        )


def resize_jpeg(
    pixels: np.ndarray, stored: tuple[int, int], part: Part, mode: ImageMode, interpolation: Interpolation
) -> np.ndarray:
    """Resize a part of what `read_jpeg_to_resize` returned."""
    (left, top, width, height), target = part
    pil_mode = _JPEG_RESIZE_COLORS[mode][1]
    size = (pixels.shape[1], pixels.shape[0])
    if target == (width, height) and size == stored:
        return np.ascontiguousarray(pixels[top : top + height, left : left + width, : len(mode)])
    image = Image.frombuffer(pil_mode, size, pixels, "raw", pil_mode, 0, 1)
    x_scale, y_scale = size[0] / stored[0], size[1] / stored[1]
    corners = (left * x_scale, top * y_scale, (left + width) * x_scale, (top + height) * y_scale)
    resized = image.resize(target, Image.Resampling[interpolation.upper()], corners)
    raw = resized.tobytes("raw", "RGB") if mode == "RGB" else resized.tobytes()
    return np.frombuffer(raw, np.uint8).reshape(target[1], target[0], len(mode)).copy()


def resize_part(
    image: np.ndarray | Image.Image,
    part: Part,
    mode: ImageMode,
    interpolation: Interpolation,
    data: bytes | Image.Image,
) -> np.ndarray:
    """Resize a part of decoded pixels in the colours of the file; `data`, of which they are, say what alpha means."""
    (left, top, width, height), target = part
    if isinstance(image, np.ndarray):
        channels = image.shape[2] if image.ndim == 3 else 1
        if target == (width, height) and channels == len(mode):
            return np.ascontiguousarray(image[top : top + height, left : left + width]).reshape(height, width, channels)
        image = Image.fromarray(np.ascontiguousarray(image))
    image = in_mode(image, mode)
    corners = (left, top, left + width, top + height)
    if target != (width, height):
        image = resize(image, target, corners, interpolation, alpha=mode == "RGBA" and declares_alpha(data))
    elif target != image.size:
        image = image.crop(corners)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(target[1], target[0], len(mode)).copy()


def in_mode(image: Image.Image, mode: ImageMode) -> Image.Image:
    """The image converted to a mode, itself if it has it."""
    with decode_errors_as_bad_image():
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        return image if image.mode == mode else image.convert(mode)


def _loaded(image: Image.Image, stored: tuple[int, int]) -> Image.Image:
    with _load_lock, decode_errors_as_bad_image():
        image.load()
        check_size(image, stored)
    return image


def load_frame(image: Image.Image, page: int, stored: tuple[int, int]) -> Image.Image:
    """A copy of one page or frame of a PIL image, which is left at the page where it was."""
    with _load_lock, decode_errors_as_bad_image():
        before = image.tell()
        try:
            image.seek(page)
            image.load()
            check_size(image, stored)
            return image.copy()
        finally:
            image.seek(before)


def read_pixels(data: bytes, stored: tuple[int, int], warn: Warn) -> np.ndarray | Image.Image:
    """The first page of an encoded image, by the format's own decoder or else by PIL."""
    reader = reader_of(data)
    with decode_errors_as_bad_image():
        if reader.decoder != PIL:  # which says the size before it decodes
            facts = reader.header(data)
            _check_size((facts.width, facts.height), stored)
        take_messages()
        try:
            pixels = reader.decode(data)
            if take_messages():
                warn(MESSAGE)
        except BAD_DATA as error:
            if reader.second is None:
                raise
            try:
                pixels = by_pil.decode(reader.second, data)
            except BAD_DATA:
                raise error from None
            warn(SECOND_DECODER)
    check_size(pixels, stored)
    if isinstance(pixels, np.ndarray) and pixels.dtype != np.uint8:  # its header said otherwise
        raise BadImage(f"its pixels are {pixels.dtype}, which 8-bit colours do not hold")
    return pixels


def resize_array(data: np.ndarray, part: Part, mode: ImageMode, interpolation: Interpolation) -> np.ndarray:
    """Resize a part of an array (height, width) or (height, width, C)."""
    (left, top, width, height), target = part
    pixels = data[..., None] if data.ndim == 2 else data
    if target == (width, height) and pixels.shape[2] == len(mode):
        return pixels[top : top + height, left : left + width].copy()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    if pixels.shape[2] == len(mode) == 4:  # an array says of none of its bands that it is alpha
        corners = (left, top, left + width, top + height)
        image = resize(image, target, corners, interpolation, alpha=declares_alpha(data))
        return np.frombuffer(image.tobytes(), np.uint8).reshape(target[1], target[0], 4).copy()
    return resize_part(image, part, mode, interpolation, image)


def check_size(pixels: np.ndarray | Image.Image, stored: tuple[int, int]) -> None:
    """Raise `BadImage` if decoded pixels are not of the size that the header said."""
    _check_size(pixels.shape[1::-1] if isinstance(pixels, np.ndarray) else pixels.size, stored)


def _check_size(decoded: tuple[int, ...], stored: tuple[int, int]) -> None:
    if decoded != stored:
        raise BadImage(f"its pixels are {decoded[0]}x{decoded[1]}, its header said {stored[0]}x{stored[1]}")


def _renew_lock() -> None:
    global _load_lock
    _load_lock = threading.Lock()  # the thread that held it in the parent does not exist in a forked child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)
