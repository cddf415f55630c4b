"""Image headers: size, EXIF orientation and format, without decoding a pixel. Unsupported images are refused here."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile

from patchnpack.loaders.errors import MAX_PIXELS, BadImage
from patchnpack.loaders.imaging.exif import info_orientation, orientation, tiff_numbers
from patchnpack.loaders.imaging.formats import (
    JPEG,
    PIXELS,
    PLUGIN_FORMATS,
    TIFF,
    is_jpeg,
    plugin_of,
)

# Sizes are (width, height) in pixels: "stored" as in the file, "upright" after EXIF orientation is applied.

_WIDTH, _HEIGHT, _BITS_PER_SAMPLE, _ORIENTATION, _SAMPLES_PER_PIXEL = 256, 257, 258, 274, 277  # TIFF tags
_MAX_CHANNELS = 4
_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # at most 8 bits; PIL converts them
_DIRECT_COLORS = {"Gray", "YCbCr", "RGB"}  # JPEG colour spaces that libjpeg-turbo converts to RGB

# What decoders raise on bad data. Any other exception is a bug, in a decoder or here, and propagates.
BAD_DATA = (
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


class Header(NamedTuple):
    """What an image's header says.

    Attributes:
        width, height: size in pixels, upright.
        orientation: EXIF orientation, 1 to 8.
        format: position in `FORMATS`.
    """

    width: int
    height: int
    orientation: int
    format: int

    @property
    def direct(self) -> bool:
        """Whether libjpeg-turbo decodes the image; otherwise PIL does."""
        return self.format == JPEG


class UnsupportedImage(BadImage):
    """An intact image of an unsupported kind, such as 16-bit.

    Its `header` is known, so a user's `decode` function can read the image.
    """

    def __init__(self, reason: str, header: Header) -> None:
        super().__init__(f"{reason} unless decode= is given")
        self.header = header


@contextmanager
def decode_errors_as_bad_image() -> Iterator[None]:
    """Turn what a decoder raises on bad data into `BadImage`."""
    try:
        yield
    except BAD_DATA as error:
        raise bad_image(error) from error


def bad_image(error: Exception) -> BadImage:
    """The `BadImage` that one of `BAD_DATA` means."""
    truncated = "premature end of jpeg" in str(error).lower()
    return BadImage(f"{type(error).__name__}: {error}", truncated=truncated)


def read_header(data: bytes) -> Header:
    """Read size, orientation and format of an encoded image.

    Raises:
        UnsupportedImage: the image has more than 8 bits per channel, more than 4 channels, a colour space that PIL
            does not convert, or several pages.
        BadImage: the data are no image, or the image is too large.
        ValueError: the image is a WebP, and this PIL was built without WebP support.
    """
    unsupported = None
    if is_jpeg(data):
        with decode_errors_as_bad_image():
            height, width, color, _ = simplejpeg.decode_jpeg_header(data)
        format = JPEG if color in _DIRECT_COLORS else PLUGIN_FORMATS[JpegImageFile]
    else:
        plugin = plugin_of(data)
        with decode_errors_as_bad_image():
            (width, height), unsupported = _open_header(plugin, data)
        format = PLUGIN_FORMATS[plugin]
    header = _header(width, height, orientation(data), format)
    if format == TIFF:
        header = header._replace(orientation=1)  # PIL turns it upright as it loads it
    if unsupported is not None:
        raise UnsupportedImage(unsupported, header)
    return header


def image_header(image: Image.Image | np.ndarray) -> Header:
    """The header of a PIL image or of an array, as `read_header` gives it for encoded images.

    Raises:
        BadImage: the image is too large, empty, or of a kind that 8-bit channels cannot hold.
        ValueError: the array is not uint8 (height, width, C) with C of 1, 3 or 4, nor uint8 (height, width).
    """
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                f"an image is a {image.dtype} array {image.shape}; it must be uint8 (height, width, 3), or with 1 or 4 "
                "channels: pass the encoded bytes, or pixels that were not scaled, normalised or transposed"
            )
        return _header(image.shape[1], image.shape[0], 1, PIXELS)
    with decode_errors_as_bad_image():
        unsupported = _unsupported_mode(image)
    if unsupported is not None:
        raise BadImage(unsupported)
    return _held_header(image)


def _held_header(image: Image.Image) -> Header:
    """The header of a PIL image of a supported mode."""
    width, height = image.size
    turned = info_orientation(image.info)
    if not isinstance(image, TiffImageFile):
        return _header(width, height, turned, PIXELS)
    # PIL turns a TIFF upright as it loads it; before, its size is upright only if the tag says so, not by XMP.
    if turned >= 5 and image._im is None and _ORIENTATION not in image.tag_v2:
        width, height = height, width
    return _header(width, height, 1, PIXELS)


def _header(width: int, height: int, orientation: int, format: int) -> Header:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise BadImage(
            f"its header says {width}x{height} pixels; an image must have at least 1 and at most {MAX_PIXELS} pixels"
        )
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, format)


def _open_header(plugin: type[ImageFile.ImageFile], data: bytes) -> tuple[tuple[int, int], str | None]:
    """The size as the image is stored, and why the image is unsupported, None if it is supported."""
    if plugin is TiffImageFile and (unsupported := _unsupported_tiff(data)) is not None:
        return unsupported
    image = plugin(io.BytesIO(data))
    # PIL reads 16-bit colour as 8-bit without a warning, so the depth comes from the file's own header.
    bits, size = data[24] if isinstance(image, PngImageFile) else 8, image.size
    if isinstance(image, TiffImageFile):
        bits = max(image.tag_v2.get(_BITS_PER_SAMPLE, (1,)))
        size = int(image.tag_v2[_WIDTH]), int(image.tag_v2[_HEIGHT])  # as stored: `image.size` may be upright
    return size, _too_deep(bits) if bits > 8 else _unsupported_mode(image)


def _unsupported_tiff(data: bytes) -> tuple[tuple[int, int], str] | None:
    """Size and reason of a TIFF with too many or too deep channels; PIL cannot open all of these."""
    tags = tiff_numbers(data)
    width, height = tags.get(_WIDTH, 0), tags.get(_HEIGHT, 0)
    channels, bits = tags.get(_SAMPLES_PER_PIXEL, 1), tags.get(_BITS_PER_SAMPLE, 1)  # bits of the first channel
    if not (width and height) or (channels <= _MAX_CHANNELS and bits <= 8):
        return None
    if channels > _MAX_CHANNELS:
        return (width, height), f"it has {channels} channels; only up to {_MAX_CHANNELS} are read"
    return (width, height), _too_deep(bits)


def _too_deep(bits: int) -> str:
    return f"it has {bits} bits per channel; only 8-bit channels are read"


def _unsupported_mode(image: Image.Image) -> str | None:
    if image.mode not in _MODES:
        return f"its pixels are of PIL mode {image.mode!r}; only {', '.join(sorted(_MODES))} are read"
    if getattr(image, "is_animated", False):
        return "it has several pages or frames; only single images are read"
    return None
