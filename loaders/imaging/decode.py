"""Decoding: encoded bytes in, an upright uint8 image of the planned size out. Every slow step releases the GIL."""

from __future__ import annotations

import io
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import PIL
import simplejpeg
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import SUPPORTED as WEBP_SUPPORTED
from PIL.WebPImagePlugin import WebPImageFile

from patchnpack.loaders.errors import MAX_PIXELS, BadImage
from patchnpack.loaders.imaging.decode_buffers import DecodeBuffers
from patchnpack.loaders.imaging.exif import block_orientation, tiff_numbers
from patchnpack.loaders.imaging.exif import orientation as exif_orientation
from patchnpack.packer import _kernels
from patchnpack.packer.config import ImageMode, Interpolation

# All sizes are (width, height) in pixels: "stored" as the file has them, "upright" after EXIF orientation.

_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION, _SAMPLES_PER_PIXEL = 256, 257, 258, 274, 277  # TIFF tags
_MOST_CHANNELS = 4

_buffers = DecodeBuffers()
_loading = threading.Lock()  # one of PIL's images may come to several threads; reading its file twice at once breaks it

# What decoders raise on bad data; anything else is a bug, theirs or ours, and is raised.
_BAD_DATA = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
# Kinds of files. The first is JPEG that libjpeg-turbo itself turns into RGB; PIL decodes the others, but for the last:
# what somebody else has decoded.
FORMATS = ("jpeg", "cmyk-jpeg", "png", "webp", "gif", "bmp", "tiff", "pixels")
_PIXELS = 7
_FORMAT = {
    JpegImageFile: 1,
    PngImageFile: 2,
    WebPImageFile: 3,
    GifImageFile: 4,
    BmpImageFile: 5,
    TiffImageFile: 6,
}
_BEGINNINGS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8": JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
}
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # 8 bits a channel, and PIL converts them
_DIRECT = {"Gray", "YCbCr", "RGB"}  # JPEG colour spaces that libjpeg-turbo itself turns into RGB
_JPEG_COLORS: dict[ImageMode, str] = {"L": "GRAY", "RGB": "RGB", "RGBA": "RGBA"}
# PIL keeps RGB in four bytes a pixel; decoded that way, the buffer is resized without a copy.
_JPEG_RESIZE_COLORS: dict[ImageMode, tuple[str, str]] = {
    "L": ("GRAY", "L"),
    "RGB": ("RGBX", "RGBX"),
    "RGBA": ("RGBA", "RGBX"),
}


class Header(NamedTuple):
    """What an image's header tells.

    Attributes:
        width, height: pixels, upright.
        orientation: EXIF orientation, 1 to 8.
        format: which of `FORMATS` it is.
    """

    width: int
    height: int
    orientation: int
    format: int

    @property
    def direct(self) -> bool:
        """Whether libjpeg-turbo decodes it; PIL does otherwise."""
        return self.format == 0


class UnreadKind(BadImage):
    """An image of a kind that is not read here, such as 16-bit; its `header` is known, so a `decode` function can be
    given it."""

    def __init__(self, reason: str, header: Header) -> None:
        super().__init__(f"{reason} unless decode= is given")
        self.header = header


@contextmanager
def _as_bad_image() -> Iterator[None]:
    try:
        yield
    except _BAD_DATA as error:
        truncated = "premature end of jpeg" in str(error).lower()
        raise BadImage(f"{type(error).__name__}: {error}", truncated=truncated) from error


def read_header(data: bytes) -> Header:
    """Size and orientation from an encoded image; no pixel is decoded.

    Raises:
        UnreadKind: it is of a kind that 8-bit channels cannot hold, or has several pages.
        BadImage: it is no image, or too large.
        ValueError: it is WebP, and this build of PIL cannot read any.
    """
    unread = None
    if data[:2] == b"\xff\xd8":
        with _as_bad_image():
            height, width, color, _ = simplejpeg.decode_jpeg_header(data)
        kind = 0 if color in _DIRECT else _FORMAT[JpegImageFile]
    else:
        plugin = _plugin(data)
        with _as_bad_image():
            (width, height), unread = _look(plugin, data)
        kind = _FORMAT[plugin]
    header = _header(width, height, exif_orientation(data), kind)
    if unread is not None:
        raise UnreadKind(unread, header)
    return header


def image_header(image: Image.Image | np.ndarray) -> Header:
    """What `read_header` tells, of an image that PIL has opened or made, or of an array; no pixel is looked at.

    Raises:
        BadImage: it is too large, empty, or of a kind that 8-bit channels cannot hold.
        ValueError: an array that is not uint8 (height, width, C) with C of 1, 3 or 4, or (height, width).
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                f"an image is a {image.dtype} array {image.shape}; it must be uint8 (height, width, 3), or with 1 or 4 "
                "channels: hand on the encoded bytes, or pixels that were not scaled, normalised or transposed"
            )
        return _header(image.shape[1], image.shape[0], 1, _PIXELS)
    with _as_bad_image():
        unread = _unread_kind(image)
    if unread is not None:
        raise BadImage(unread)
    exif = image.info.get("exif")
    return _header(*image.size, block_orientation(exif) if isinstance(exif, bytes) else 1, _PIXELS)


def _header(width: int, height: int, orientation: int, kind: int) -> Header:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise BadImage(f"its header says {width}x{height} pixels; the limits are 1 and {MAX_PIXELS} in all")
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, kind)


def _plugin(data: bytes) -> type[ImageFile.ImageFile]:
    """The part of PIL that reads what `data` begin as. `Image.open` would try them all, and some run other programs."""
    if _is_webp(data):
        if not WEBP_SUPPORTED:
            raise ValueError(
                f"there are WebP images, and this PIL {PIL.__version__} was built without WebP; in a checkout: make "
                "setup SIMD=0, else: pip install --force-reinstall pillow; or leave .webp out of image="
            )
        return WebPImageFile
    for beginning, plugin in _BEGINNINGS.items():
        if data.startswith(beginning):
            return plugin
    raise BadImage(f"it begins with {data[:8]!r}; only JPEG, PNG, WebP, GIF, BMP and TIFF are read")


def begins_as_image(data: bytes) -> bool:
    """Whether a file of these first bytes is of a kind that is read here."""
    return _is_webp(data) or data.startswith(tuple(_BEGINNINGS))


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _look(plugin: type[ImageFile.ImageFile], data: bytes) -> tuple[tuple[int, int], str | None]:
    """Width and height as PIL decodes the image, and why it is not read, None if it is."""
    if plugin is TiffImageFile and (unread := _unread_tiff(data)) is not None:
        return unread
    image = plugin(io.BytesIO(data))
    # PIL reads 16-bit colour as 8-bit without a word; only the file's own header tells.
    bits = data[24] if isinstance(image, PngImageFile) else 8
    if isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
    return image.size, _too_deep(bits) if bits > 8 else _unread_kind(image)


def _unread_tiff(data: bytes) -> tuple[tuple[int, int], str] | None:
    """What `_look` tells of a TIFF of more channels, or deeper ones, than are read; PIL cannot open all of these."""
    tags = tiff_numbers(data)
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    channels, bits = tags.get(_SAMPLES_PER_PIXEL, 1), tags.get(_BITS_PER_SAMPLE, 1)  # bits of the first channel
    if not (width and height) or (channels <= _MOST_CHANNELS and bits <= 8):
        return None
    if tags.get(_ORIENTATION, 1) in (5, 6, 7, 8):  # as PIL turns those that it opens
        width, height = height, width
    if channels > _MOST_CHANNELS:
        return (width, height), f"it has {channels} channels; only up to {_MOST_CHANNELS} are read"
    return (width, height), _too_deep(bits)


def _too_deep(bits: int) -> str:
    return f"it has {bits} bits a channel; only 8-bit channels are read"


def _unread_kind(image: Image.Image) -> str | None:
    if image.mode not in _MODES:
        return f"its pixels are of PIL mode {image.mode!r}; only {', '.join(sorted(_MODES))} are read"
    if getattr(image, "is_animated", False):
        return "it has several pages or frames; only single images are read"
    return None


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
) -> np.ndarray:
    """The image upright and resized to `size`, uint8 (height, width, C), contiguous.

    Args:
        data: the encoded image, one that PIL has opened or made, or an array.
        header: what `read_header`, or `image_header`, said of it.
        size: (width, height) in pixels, upright; equal to the header's (or the box's), nothing is resized.
        box: (left, top, width, height) in pixels, upright, the part that is used; None is all of it.
        mode: "L", "RGB" or "RGBA"; sets C.
        interpolation: PIL's name of the resizing filter.
        scaled: decode a JPEG that is shrunk at least twofold at a lower scale.
        strict: refuse a JPEG that ends early; else the rest of it is grey.

    Raises:
        BadImage: the data cannot be decoded, or are not what the header said.
    """
    turned = header.orientation >= 5
    stored = (header.height, header.width) if turned else (header.width, header.height)
    part = (0, 0, *stored) if box is None else _stored_box(box, header)
    target = size[::-1] if turned else size
    if header.direct and isinstance(data, bytes):
        pixels = _decode_jpeg(data, stored, part, target, mode, interpolation, scaled, strict)
    elif isinstance(data, np.ndarray):
        pixels = _from_array(data, stored, part, target, mode, interpolation)
    else:
        pixels = _decode_other(data, stored, part, target, mode, interpolation)
    return pixels if header.orientation == 1 else _kernels.orient(pixels, header.orientation)


def _stored_box(box: tuple[int, ...], header: Header) -> tuple[int, int, int, int]:
    """Where a box of the upright image lies in the stored one: EXIF 2.32, tag 0x0112."""
    left, top, width, height = box
    if header.orientation in (2, 3, 6, 7):
        left = header.width - left - width
    if header.orientation in (3, 4, 7, 8):
        top = header.height - top - height
    return (left, top, width, height) if header.orientation < 5 else (top, left, height, width)


def _decode_jpeg(
    data: bytes,
    stored: tuple[int, int],
    part: tuple[int, int, int, int],
    target: tuple[int, int],
    mode: ImageMode,
    interpolation: Interpolation,
    scaled: bool,
    strict: bool,
) -> np.ndarray:
    left, top, width, height = part
    with _as_bad_image():
        if target == stored and part == (0, 0, *stored):
            # Into memory of the size that it should have: one call less, and a larger image is refused all the same.
            pixels = _buffers.acquire((stored[1], stored[0], len(mode)))
            try:
                native: np.ndarray = simplejpeg.decode_jpeg(data, _JPEG_COLORS[mode], buffer=pixels, strict=strict)
            except ValueError:
                _check_size(_jpeg_size(data), stored)
                raise
            _check_size((native.shape[1], native.shape[0]), stored)
            return native
        _check_size(_jpeg_size(data), stored)
        if target == (width, height):
            pixels = _buffers.acquire((stored[1], stored[0], len(mode)))
            native = simplejpeg.decode_jpeg(data, _JPEG_COLORS[mode], buffer=pixels, strict=strict)
            return np.ascontiguousarray(native[top : top + height, left : left + width])
        color, pil_mode = _JPEG_RESIZE_COLORS[mode]
        # The smallest of libjpeg-turbo's scales up to a half at which the part is at least the target, or else 1.
        least, half = stored[::-1], (-(-stored[1] // 2), -(-stored[0] // 2))
        if scaled:
            least = (-(-stored[1] * target[1] // height), -(-stored[0] * target[0] // width))
        most = half if least[0] <= half[0] and least[1] <= half[1] else stored[::-1]
        pixels = simplejpeg.decode_jpeg(
            data,
            color,
            min_height=least[0],
            min_width=least[1],
            min_factor=2,
            buffer=_buffers.acquire((*most, len(pil_mode))),
            strict=strict,
        )
    size = (pixels.shape[1], pixels.shape[0])
    image = Image.frombuffer(pil_mode, size, pixels, "raw", pil_mode, 0, 1)
    across, down = size[0] / stored[0], size[1] / stored[1]
    box = (left * across, top * down, (left + width) * across, (top + height) * down)
    resized = image.resize(target, Image.Resampling[interpolation.upper()], box)
    raw = resized.tobytes("raw", "RGB") if mode == "RGB" else resized.tobytes()
    return np.frombuffer(raw, np.uint8).reshape(target[1], target[0], len(mode)).copy()


def _jpeg_size(data: bytes) -> tuple[int, int]:
    height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    return width, height


def _decode_other(
    data: bytes | Image.Image,
    stored: tuple[int, int],
    part: tuple[int, int, int, int],
    target: tuple[int, int],
    mode: ImageMode,
    interpolation: Interpolation,
) -> np.ndarray:
    left, top, width, height = part
    if isinstance(data, Image.Image):
        with _loading, _as_bad_image():
            data.load()
            _check_size(data.size, stored)
        image = data
    else:
        plugin = _plugin(data)
        with _as_bad_image():
            image = plugin(io.BytesIO(data))
            _check_size(image.size, stored)
            image.load()
    with _as_bad_image():
        if image.mode == "P" and "transparency" in image.info:
            image = image.convert("RGBA")
        if image.mode != mode:
            image = image.convert(mode)
    box = (left, top, left + width, top + height)
    if target != (width, height):
        image = image.resize(target, Image.Resampling[interpolation.upper()], box)
    elif target != stored:
        image = image.crop(box)
    return np.frombuffer(image.tobytes(), np.uint8).reshape(target[1], target[0], len(mode)).copy()


def _from_array(
    data: np.ndarray,
    stored: tuple[int, int],
    part: tuple[int, int, int, int],
    target: tuple[int, int],
    mode: ImageMode,
    interpolation: Interpolation,
) -> np.ndarray:
    left, top, width, height = part
    pixels = data[..., None] if data.ndim == 2 else data
    if target == (width, height) and pixels.shape[2] == len(mode):
        return pixels[top : top + height, left : left + width].copy()
    image = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    return _decode_other(image, stored, part, target, mode, interpolation)


def _check_size(decoded: tuple[int, ...], stored: tuple[int, int]) -> None:
    if decoded != stored:
        raise BadImage(f"its pixels are {decoded[0]}x{decoded[1]}, its header said {stored[0]}x{stored[1]}")


def _begin_again() -> None:
    global _loading
    _loading = threading.Lock()  # a thread that held it when the process was forked is not there to let it go


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_again)
