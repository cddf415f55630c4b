"""BMP: PIL reads header and pixels without a system library."""

from __future__ import annotations

from PIL import Image

from patchnpack.loaders.imaging.readers import by_pil
from patchnpack.loaders.imaging.readers.facts import Facts


def header(data: bytes) -> Facts:
    """Size and kind of pixels."""
    return by_pil.facts("Bmp", data)


def decode(data: bytes) -> Image.Image:
    """The pixels."""
    return by_pil.decode("Bmp", data)
