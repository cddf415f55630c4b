"""Decoding with PIL: formats that no other decoder reads, and images that the first decoder refuses."""

from __future__ import annotations

import functools
import importlib
import io
from collections.abc import Iterator, Sequence

import PIL
from PIL import Image, ImageFile

from patchnpack.loaders.errors import MAX_PIXELS
from patchnpack.loaders.imaging.readers.facts import Facts

MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"}  # at most 8 bits; PIL converts them


@functools.cache
def plugin(name: str) -> type[ImageFile.ImageFile]:
    """The class of a PIL plugin, such as "Bmp". `PIL.Image.open` would try every plugin, and some run programs.

    Raises:
        OSError: this PIL has no such plugin, or was built without the library that it needs.
    """
    try:
        module = importlib.import_module(f"PIL.{name}ImagePlugin")
    except ImportError as error:
        raise OSError(f"PIL {PIL.__version__} does not read {name}") from error
    if not getattr(module, "SUPPORTED", True):
        raise OSError(f"PIL {PIL.__version__} was built without {name}")
    found: type[ImageFile.ImageFile] = getattr(module, f"{name}ImageFile")
    return found


def decode(name: str, data: bytes) -> Image.Image:
    """The first page as PIL's plugin decodes it, in a mode whose conversions keep what the palette says of alpha."""
    return next(frames(name, data, (0,)))


def frames(name: str, data: bytes, wanted: Sequence[int]) -> Iterator[Image.Image]:
    """The frames `wanted`, ascending, as PIL's plugin composites them. Each is valid until the next is asked for."""
    try:
        image: Image.Image = plugin(name)(io.BytesIO(data))
        for number in wanted:
            if image.width * image.height > MAX_PIXELS:
                raise ValueError(f"its header says {image.width}x{image.height} pixels")
            if number:
                image.seek(number)
            image.load()
            yield image.convert("RGBA") if image.mode == "P" and "transparency" in image.info else image
    except (TypeError, RuntimeError) as error:  # of a TIFF with fractions for whole numbers, and of a damaged AVIF
        raise ValueError(str(error)) from error


def facts(name: str, data: bytes, pages: int = 1) -> Facts:
    """What PIL's plugin says of an image; `pages` were counted before."""
    image = plugin(name)(io.BytesIO(data))
    return Facts(*image.size, pages, unsupported=unsupported_mode(image.mode), bands=bands_of(image.mode))


def bands_of(mode: str) -> int:
    """Channels of an image of a PIL mode; palettes become RGB."""
    return {"1": 1, "L": 1, "LA": 2, "RGBA": 4, "CMYK": 4}.get(mode, 3 if mode in MODES else 0)


def unsupported_mode(mode: str) -> str | None:
    """Why images of a PIL mode are not read, None if they are."""
    return None if mode in MODES else f"its pixels are of PIL mode {mode!r}; only {', '.join(sorted(MODES))} are read"
