"""Resizing: each band by itself, unless the image has an alpha channel by its own header."""

from __future__ import annotations

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from patchnpack.loaders.imaging.exif import tiff_declares_alpha
from patchnpack.loaders.imaging.signatures import is_tiff
from patchnpack.packer.config import Interpolation

_EXTRA_SAMPLES = 338  # TIFF tag


def declares_alpha(data: bytes | Image.Image | np.ndarray) -> bool:
    """Whether an image says itself that its fourth band, if it has one, is an alpha channel.

    A TIFF says so by a tag; without it, the band may be anything. In the other formats and in PIL's modes, a fourth
    band is alpha. An array says nothing.
    """
    if isinstance(data, np.ndarray):
        return False
    if isinstance(data, TiffImageFile):
        extra = data.tag_v2.get(_EXTRA_SAMPLES, (0,))
        return (extra[0] if isinstance(extra, tuple) else extra) in (1, 2)
    return isinstance(data, Image.Image) or not is_tiff(data) or tiff_declares_alpha(data)


def resize(
    image: Image.Image,
    size: tuple[int, int],
    corners: tuple[float, float, float, float],
    interpolation: Interpolation,
    *,
    alpha: bool,
) -> Image.Image:
    """Resize the part of an image between `corners` to `size`.

    Args:
        image: in the mode of the result.
        size: (width, height) in pixels.
        corners: (left, top, right, bottom) in pixels.
        interpolation: PIL's name of the filter.
        alpha: whether the fourth band of an RGBA image is alpha: colours then count by their opacity, as in PIL.
            Otherwise the bands are resized by themselves, and the mode of the result is RGBX.
    """
    if image.mode == "RGBA" and not alpha:
        image = Image.frombuffer("RGBX", image.size, image.tobytes(), "raw", "RGBX", 0, 1)
    return image.resize(size, Image.Resampling[interpolation.upper()], corners)
