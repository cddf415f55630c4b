"""Encoding: pixels that come decoded, as a PIL image or an array, to a file that loses nothing of them."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.formats import NPY
from patchnpack.loaders.imaging.header import Header, header_of, read_header
from patchnpack.loaders.imaging.readers import npy
from patchnpack.loaders.imaging.readers.depth import turned
from patchnpack.loaders.imaging.resize import declares_alpha
from patchnpack.loaders.imaging.values.bands import band_request, values_of
from patchnpack.packer import Packing
from patchnpack.packer.config import ImageMode

_AS_THEY_ARE = ("L", "RGB", "RGBA")
_ORIENTATION = 0x0112  # an EXIF tag
_LEVEL = 1  # of zlib: photographs take a quarter of the time of level 6, and 7 % more bytes


def encode_pixels(image: Image.Image | np.ndarray, header: Header, packing: Packing) -> tuple[bytes, Header]:
    """Encode pixels as a PNG, from which `decode` gives what it gives from `image`, at any size and box.

    A fourth channel that is not declared to be alpha, as that of an array, needs another format: TIFF. Values that are
    read by their bands become an .npy file.

    Args:
        image: loaded, of a mode that `image_header` accepts. Modes other than L, RGB and RGBA are converted to `mode`.
        header: its header, from `image_header`. An orientation is stored, not applied.
        packing: says how the pixels will be decoded.

    Returns:
        The file and its header.

    Raises:
        BadImage: the image cannot be converted.
    """
    bands = band_request(packing)
    if bands is not None and bands.takes(header):
        file = io.BytesIO()
        np.save(file, turned(values_of(image, header), header.orientation))
        return file.getvalue(), header_of(npy.header(file.getvalue()), b"", NPY, values=True)
    data = _encode_colors(image, header, packing.image_mode)
    return data, read_header(data)


def _encode_colors(image: Image.Image | np.ndarray, header: Header, mode: ImageMode) -> bytes:
    if isinstance(image, np.ndarray):
        pixels = image
    elif image.mode in _AS_THEY_ARE and "transparency" not in image.info:
        pixels = np.asarray(image)
    else:
        pixels = decode(
            image, header._replace(width=image.width, height=image.height, orientation=1), image.size, mode=mode
        )
    pixels = np.ascontiguousarray(pixels[..., 0] if pixels.shape[2:] == (1,) else pixels)
    if pixels.shape[2:] == (4,) and not declares_alpha(image):
        return _tiff(pixels)
    file = io.BytesIO()
    exif = Image.Exif()
    if header.orientation != 1:
        exif[_ORIENTATION] = header.orientation
    Image.fromarray(pixels).save(file, "PNG", compress_level=_LEVEL, exif=exif)
    return file.getvalue()


def _tiff(pixels: np.ndarray) -> bytes:
    """Encode pixels (height, width, 4) as a TIFF of one strip that says nothing of its fourth sample.

    PIL and libtiff would say that it is alpha or that it is to be ignored.
    """
    height, width, samples = pixels.shape
    strip = zlib.compress(pixels.tobytes(), _LEVEL)
    short, long = 3, 4  # types of fields
    fields = {
        256: (long, width),
        257: (long, height),
        258: (short, 0),  # bits per sample: behind the directory
        259: (short, 8),  # compression: deflate
        262: (short, 2),  # RGB
        273: (long, 0),  # where the strip begins
        277: (short, samples),
        278: (long, height),  # rows of the strip
        279: (long, len(strip)),
    }
    bits = 8 + 2 + 12 * len(fields) + 4
    fields |= {258: (short, bits), 273: (long, bits + 2 * samples)}
    directory = struct.pack("<H", len(fields))
    for tag, (kind, value) in fields.items():
        directory += struct.pack("<HHII", tag, kind, samples if tag == 258 else 1, value)
    header = struct.pack("<2sHI", b"II", 42, 8)
    return header + directory + struct.pack("<I", 0) + struct.pack(f"<{samples}H", *[8] * samples) + strip
