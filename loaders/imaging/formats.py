"""The image formats that are read: their first bytes, their numbers in an index, and their PIL plugins."""

from __future__ import annotations

import PIL
from PIL import ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import SUPPORTED as WEBP_SUPPORTED
from PIL.WebPImagePlugin import WebPImageFile

from patchnpack.loaders.errors import BadImage

# An index stores positions in this tuple, so the order is fixed. "jpeg" is JPEG in a colour space that libjpeg-turbo
# converts to RGB itself. "pixels" is an image that the caller has already decoded. PIL decodes all others.
FORMATS = ("jpeg", "cmyk-jpeg", "png", "webp", "gif", "bmp", "tiff", "pixels")
JPEG, TIFF, PIXELS = 0, 6, 7
PLUGIN_FORMATS: dict[type[ImageFile.ImageFile], int] = {
    JpegImageFile: 1,
    PngImageFile: 2,
    WebPImageFile: 3,
    GifImageFile: 4,
    BmpImageFile: 5,
    TiffImageFile: 6,
}
_JPEG_START, _PNG_START = b"\xff\xd8", b"\x89PNG\r\n\x1a\n"
_PLUGINS: dict[bytes, type[ImageFile.ImageFile]] = {
    _JPEG_START: JpegImageFile,
    _PNG_START: PngImageFile,
    b"GIF8": GifImageFile,
    b"BM": BmpImageFile,
    b"II*\x00": TiffImageFile,
    b"MM\x00*": TiffImageFile,
}


def is_jpeg(data: bytes) -> bool:
    """Whether the data begin like a JPEG."""
    return data.startswith(_JPEG_START)


def is_png(data: bytes) -> bool:
    """Whether the data begin like a PNG."""
    return data.startswith(_PNG_START)


def is_webp(data: bytes) -> bool:
    """Whether the data begin like a WebP."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def is_tiff(data: bytes) -> bool:
    """Whether the data begin like a TIFF, or like a BigTIFF."""
    return data.startswith((b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+"))


def is_image(data: bytes) -> bool:
    """Whether the data begin like an image of a format that is read."""
    return is_webp(data) or data.startswith(tuple(_PLUGINS))


def plugin_of(data: bytes) -> type[ImageFile.ImageFile]:
    """The PIL plugin for an encoded image. `PIL.Image.open` would try every plugin, and some run other programs.

    Raises:
        BadImage: the data begin like no image of a format that is read.
        ValueError: the image is a WebP, and this PIL was built without WebP support.
    """
    if is_webp(data):
        if not WEBP_SUPPORTED:
            raise ValueError(
                f"WebP images cannot be read: this PIL {PIL.__version__} was built without WebP; in a checkout: make "
                "setup SIMD=0, else: pip install --force-reinstall pillow; or leave .webp out of image="
            )
        return WebPImageFile
    for start, plugin in _PLUGINS.items():
        if data.startswith(start):
            return plugin
    raise BadImage(f"it begins with {data[:8]!r}; only JPEG, PNG, WebP, GIF, BMP and TIFF are read")
