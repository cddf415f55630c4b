"""Values of any depth and number of bands: what a packing asks for, conversion, and resizing band by band."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.header import Header
from patchnpack.loaders.imaging.readers.by_pil import bands_of
from patchnpack.loaders.imaging.readers.facts import MAX_CHANNELS
from patchnpack.packer import Packing
from patchnpack.packer.config import Interpolation
from patchnpack.packer.convert import Convert, converted
from patchnpack.packer.dtypes import DTYPES, Dtype, as_dtype, holding

# Half the width of each of PIL's filters, in pixels of the result.
_SUPPORT = {"nearest": 1.0, "box": 0.5, "bilinear": 1.0, "hamming": 1.0, "bicubic": 2.0, "lanczos": 3.0}
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class BandRequest(NamedTuple):
    """What a packing asks for beyond 8-bit colours.

    Attributes:
        channels, dtype: of the values.
        convert: how values of another kind become these; None refuses them.
        as_colors: whether an image that 8-bit colours can hold becomes them by PIL's rules.
    """

    channels: int
    dtype: Dtype
    convert: Convert | None
    as_colors: bool

    def takes(self, header: Header) -> bool:
        """Whether an image is read by its bands; otherwise as 8-bit colours."""
        return not self.as_colors or DTYPES[header.dtype] != "uint8" or header.bands > MAX_CHANNELS

    def fits(self, header: Header) -> bool:
        """Whether the values of an image are of the kind that is asked for."""
        return (header.bands, DTYPES[header.dtype]) == (self.channels, self.dtype)

    def check(self, header: Header) -> None:
        """Raise BadImage if an image cannot be used, by its header."""
        if self.takes(header) and (refusal := self.refusal(header.bands, DTYPES[header.dtype])) is not None:
            raise BadImage(refusal)

    def refusal(self, bands: int, dtype: Dtype) -> str | None:
        """Why an image with these bands of this type cannot be used; None if it can."""
        if not bands:
            return "its values are of a kind that is read as 8-bit colours only, or not at all"
        if self.convert is not None or (bands, dtype) == (self.channels, self.dtype):
            return None
        return (
            f"it has {_kind(bands, dtype)}, and Packing asks for {_kind(self.channels, self.dtype)}; give these "
            "channels and this dtype, or convert='exact', 'scale', 'window:LOW:HIGH' or a function"
        )


def band_request(packing: Packing) -> BandRequest | None:
    """What a packing asks for beyond 8-bit colours; None if it asks for no more."""
    if not packing.by_bands and packing.convert is None:
        return None
    return BandRequest(packing.channels, packing.dtype, packing.convert, not packing.by_bands)


def values_of(pixels: np.ndarray | Image.Image, header: Header) -> np.ndarray:
    """Decoded pixels as values (height, width, bands) of one of `DTYPES`, as the header says.

    Raises:
        BadImage: they are of another kind, or the type does not hold them.
    """
    if isinstance(pixels, Image.Image):
        bands = bands_of(pixels.mode)
        if bands and pixels.mode not in (*_MODES.values(), "CMYK"):
            pixels = pixels.convert(_MODES[bands])
        pixels = np.asarray(pixels)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    dtype = DTYPES[header.dtype]
    if pixels.shape[2] != header.bands or holding(pixels.dtype) != dtype:
        raise BadImage(
            f"its pixels have {pixels.shape[2]} bands of {pixels.dtype}, its header said {_kind(header.bands, dtype)}"
        )
    try:
        return as_dtype(pixels, dtype)
    except ValueError as error:
        raise BadImage(str(error)) from error


def asked_values(values: np.ndarray, request: BandRequest, header: Header, bits: int) -> np.ndarray:
    """The values as they are asked for: as they are, or converted.

    Raises:
        BadImage: they are of another kind and cannot be converted.
    """
    if request.fits(header):
        return values
    if (refusal := request.refusal(header.bands, DTYPES[header.dtype])) is not None:
        raise BadImage(refusal)
    assert request.convert is not None
    try:
        return converted(values, request.convert, request.channels, request.dtype, bits)
    except ValueError as error:
        if callable(request.convert):
            error.add_note("raised by convert")
            raise
        raise BadImage(str(error)) from error


def resize_values(
    values: np.ndarray,
    region: tuple[int, int, int, int],
    size: tuple[int, int],
    interpolation: Interpolation,
) -> np.ndarray:
    """Cut a region out of values (height, width, C) and resize it: contiguous (height, width, C) of the same type.

    Each band is resized by PIL's filter as floats, with antialiasing, and rounded once at the end; where the filter
    overshoots the range of the type, it ends there. Without a change of size the values are the file's own.

    Args:
        values: of one of `DTYPES`.
        region: (left, top, width, height) in pixels.
        size: (width, height) in pixels.
        interpolation: PIL's name of the filter.

    Raises:
        BadImage: a value is NaN or infinite.
    """
    left, top, width, height = region
    if size == (width, height):
        out = np.ascontiguousarray(values[top : top + height, left : left + width])
    else:
        # Only pixels under the filter matter: cut them out before they become floats.
        across, down = (_reach(old, new, interpolation) for old, new in ((width, size[0]), (height, size[1])))
        x, y = max(0, left - across), max(0, top - down)
        part = values[y : top + height + down, x : left + width + across]
        corners = (left - x, top - y, left - x + width, top - y + height)
        out = np.empty((size[1], size[0], values.shape[2]), values.dtype)
        for band in range(values.shape[2]):
            image = Image.fromarray(np.ascontiguousarray(part[..., band], np.float32))
            resized = np.asarray(image.resize(size, Image.Resampling[interpolation.upper()], corners))
            if out.dtype != np.float32:
                ends = np.iinfo(out.dtype)
                resized = np.rint(resized).clip(ends.min, ends.max)
            out[..., band] = resized
    if out.dtype == np.float32 and not np.isfinite(out).all():
        raise BadImage("its values hold NaN or infinity; replace them, for example in convert=, before they are packed")
    return out


def _reach(old: int, new: int, interpolation: Interpolation) -> int:
    """Pixels beyond a region that the filter may reach; "nearest" rounds places in the whole image."""
    if interpolation == "nearest":
        return 1 << 30
    return math.ceil(_SUPPORT[interpolation] * max(1.0, old / new)) + 1


def _kind(bands: int, dtype: str) -> str:
    return f"{bands} band{'' if bands == 1 else 's'} of {dtype}"
