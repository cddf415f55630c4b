"""Image headers: size, EXIF orientation and format, without decoding a pixel. Unsupported images are refused here."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from patchnpack.loaders.errors import MAX_BYTES, MAX_PIXELS, BadImage
from patchnpack.loaders.imaging.exif import info_orientation, orientation
from patchnpack.loaders.imaging.formats import JPEG, OTHER_JPEG, PIXELS, reader_of
from patchnpack.loaders.imaging.readers import jpeg
from patchnpack.loaders.imaging.readers.by_pil import bands_of, unsupported_mode
from patchnpack.loaders.imaging.readers.facts import Facts
from patchnpack.packer.dtypes import DTYPES, Dtype

# Sizes are (width, height) in pixels: "stored" as in the file, "upright" after EXIF orientation is applied.

_ORIENTATION = 274  # a TIFF tag
_VALUES: dict[str, Dtype] = {"I;16": "uint16", "I": "float32", "F": "float32"}  # PIL's modes of more than 8 bits
_MAX_PAGES = 2**31 - 1  # as the index holds them

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
        pages: number of pages or frames; `SEVERAL` where only decoding would count them.
        bands: channels of the values that are stored; 0 where they are not read.
        dtype: type of these values, a position in `DTYPES`.
    """

    width: int
    height: int
    orientation: int
    format: int
    pages: int = 1
    bands: int = 3
    dtype: int = 0

    @property
    def direct(self) -> bool:
        """Whether libjpeg-turbo decodes the image; otherwise PIL does."""
        return self.format == JPEG


class UnsupportedImage(BadImage):
    """An intact image of an unsupported kind, such as 16-bit.

    Its `header` is known, so a user's `decode` function can read the image.
    """

    def __init__(self, reason: str, header: Header) -> None:
        by_bands = ""
        if header.bands:
            shown = f"Packing(channels={header.bands}, dtype={DTYPES[header.dtype]!r})"
            by_bands = f"; {shown} reads its values as they are, and convert= makes colours of them"
        super().__init__(f"{reason} unless decode= is given{by_bands}")
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
    """Read size, orientation, format and page count of an encoded image.

    Raises:
        UnsupportedImage: the image has more than 8 bits per channel, more than 4 channels, or a colour space that PIL
            does not convert.
        BadImage: the data are no image, or the image is too large.
    """
    reader = reader_of(data)
    format = reader.format
    with decode_errors_as_bad_image():
        if format == OTHER_JPEG:
            facts, is_direct = jpeg.header(data)
            format = JPEG if is_direct else OTHER_JPEG
        else:
            facts = reader.header(data)
    return header_of(facts, data, format)


def header_of(facts: Facts, data: bytes, format: int, *, values: bool = False) -> Header:
    """The header of an image whose facts were read; `values` accepts those of any depth and number of bands.

    Raises:
        UnsupportedImage, BadImage: as `read_header`.
    """
    turn = orientation(data) if facts.orientation is None else facts.orientation
    pages, bands = min(facts.pages, _MAX_PAGES), min(facts.bands, _MAX_PAGES)
    header = _header(facts.width, facts.height, turn, format, pages, bands, DTYPES.index(facts.dtype))
    if facts.unsupported is None:
        return header
    nbytes = facts.width * facts.height * facts.bands * np.dtype(facts.dtype).itemsize
    if nbytes > MAX_BYTES:
        raise BadImage(
            f"its header says {facts.width}x{facts.height} pixels of {facts.bands} bands, {facts.dtype}; their values "
            f"may have at most {MAX_BYTES} bytes"
        )
    if not values:
        raise UnsupportedImage(facts.unsupported, header)
    return header


def header_or_reason(image: bytes | Image.Image | np.ndarray, *, values: bool = False) -> tuple[Header, str | None]:
    """Return the header of an image, and why it cannot be used; None if it can.

    The header of an unreadable image has width and height 0. For `values` see `image_header`.

    >>> header_or_reason(b"no image")[0].width
    0
    """
    return or_reason(lambda: read_header(image) if isinstance(image, bytes) else image_header(image, values=values))


def or_reason(read: Callable[[], Header]) -> tuple[Header, str | None]:
    """The header that `read` returns, and why the image cannot be used; None if it can. See `header_or_reason`."""
    try:
        return read(), None
    except UnsupportedImage as error:
        return error.header, str(error)
    except BadImage as error:
        return Header(0, 0, 1, 0), str(error)


def image_header(image: Image.Image | np.ndarray, *, values: bool = False) -> Header:
    """The header of a PIL image or of an array, as `read_header` gives it for encoded images.

    Args:
        image: the image.
        values: accept values of any depth and number of bands, of one of `DTYPES`.

    Raises:
        BadImage: the image is too large, empty, or of a kind that 8-bit channels cannot hold.
        ValueError: the array is not uint8 (height, width, C) with C of 1, 3 or 4, nor uint8 (height, width).
    """
    if values and isinstance(image, np.ndarray) and image.dtype.name in DTYPES and image.ndim in (2, 3) and image.size:
        bands, dtype = image.shape[2] if image.ndim == 3 else 1, DTYPES.index(image.dtype.name)
        return _header(image.shape[1], image.shape[0], 1, PIXELS)._replace(bands=bands, dtype=dtype)
    if values and isinstance(image, Image.Image) and image.mode in _VALUES:
        with decode_errors_as_bad_image():
            return _held_header(image)._replace(bands=1, dtype=DTYPES.index(_VALUES[image.mode]))
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim not in (2, 3) or image.shape[2:] not in ((), (1,), (3,), (4,)):
            raise ValueError(
                f"an image is a {image.dtype} array {image.shape}; it must be uint8 (height, width, 3), or with 1 or 4 "
                "channels: pass the encoded bytes, or pixels that were not scaled, normalised or transposed. "
                f"Values of other bands, or {', '.join(DTYPES[1:])}, need Packing(channels=..., dtype=...) or convert="
            )
        bands = image.shape[2] if image.ndim == 3 else 1
        return _header(image.shape[1], image.shape[0], 1, PIXELS)._replace(bands=bands)
    if (unsupported := unsupported_mode(image.mode)) is not None:
        raise BadImage(unsupported)
    with decode_errors_as_bad_image():
        return _held_header(image)._replace(pages=getattr(image, "n_frames", 1), bands=bands_of(image.mode))


def _held_header(image: Image.Image) -> Header:
    """The header of a PIL image of a supported mode."""
    width, height = image.size
    turned = info_orientation({str(name): value for name, value in image.info.items()})
    if not isinstance(image, TiffImageFile):
        return _header(width, height, turned, PIXELS)
    # PIL turns a TIFF upright as it loads it; before, its size is upright only if the tag says so, not by XMP.
    if turned >= 5 and image._im is None and _ORIENTATION not in image.tag_v2:
        width, height = height, width
    return _header(width, height, 1, PIXELS)


def _header(
    width: int, height: int, orientation: int, format: int, pages: int = 1, bands: int = 3, dtype: int = 0
) -> Header:
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise BadImage(
            f"its header says {width}x{height} pixels; an image must have at least 1 and at most {MAX_PIXELS} pixels"
        )
    if orientation >= 5:
        width, height = height, width
    return Header(width, height, orientation, format, pages, bands, dtype)
