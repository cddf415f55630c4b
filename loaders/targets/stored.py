"""What a packed folder keeps of a mask or a map that comes as a Python object: bytes that are read as it is."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

from patchnpack.loaders.imaging.header import decode_errors_as_bad_image
from patchnpack.loaders.targets.dense import own_orientation, without_tensor
from patchnpack.packer.checks import kind_of, shown

_ORIENTATION = 0x0112  # an EXIF tag
_PALETTES = ("P", "PA")  # a mask takes their indices, a map their colours


def stored_bytes(value: Any) -> bytes:
    """Return the file that keeps a mask or a map, from which a target reads what it reads from `value`.

    Bytes stay as they are. Arrays, tensors and PIL images become .npy files, except that PIL images with a palette or
    an orientation of their own become PNG files.

    Raises:
        BadImage: a PIL image cannot be decoded.
        ValueError: there is no such file.

    >>> np.load(io.BytesIO(stored_bytes(Image.new("L", (3, 2), 7)))).shape
    (2, 3)
    """
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    file = io.BytesIO()
    if isinstance(value, Image.Image):
        with decode_errors_as_bad_image():
            value.load()
        own = own_orientation(value)
        if own > 1 or value.mode in _PALETTES:
            return _png(value, own)
        value = np.asarray(value)
    value = without_tensor(value)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biuf":
        raise ValueError(
            f"it is a {kind_of(value)}, {shown(value, 40)}, and a mask or a map is an encoded image, a PIL image or an "
            "array of numbers"
        )
    np.save(file, value, allow_pickle=False)
    return file.getvalue()


def _png(image: Image.Image, orientation: int) -> bytes:
    file, exif = io.BytesIO(), Image.Exif()
    if orientation > 1:
        exif[_ORIENTATION] = orientation
    if image.mode in ("I", "F"):  # which PNG would cut off
        raise ValueError(f"it is a PIL image of mode {image.mode!r} with an orientation; turn it before it is packed")
    try:
        image.save(file, "PNG", exif=exif)
    except (OSError, ValueError) as error:
        raise ValueError(f"it is a PIL image of mode {image.mode!r}, which PNG does not hold; convert it") from error
    return file.getvalue()
