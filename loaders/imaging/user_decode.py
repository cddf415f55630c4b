"""A user's `decode`: from an encoded image to its pixels, checked against what the header said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import Header, read_header

Decode = Callable[[bytes], np.ndarray | None]


def check_decode(decode: object) -> None:
    """ValueError where `decode` is neither None nor a function."""
    if decode is not None and not callable(decode):
        raise ValueError(f"decode is {decode!r}; it must be a function from encoded bytes to an array, or None")


def user_pixels(decode: Decode, data: bytes, header: Header, channels: int, key: str) -> bytes | np.ndarray:
    """What `decode` makes of an encoded image, uint8 (height, width, channels); the bytes where it gives None.

    Raises:
        BadImage: `decode` raised it, or gave None for an image of a kind that is not read without it.
        ValueError: another shape or type.

    Whatever else `decode` raises is raised, with the key.
    """
    try:
        pixels: Any = decode(data)
    except BadImage:
        raise
    except Exception as error:
        error.add_note(
            f"raised by decode, for the image with key {key!r}; for an image that is damaged it may raise "
            "patchnpack.loaders.BadImage(reason), which counts it and goes on"
        )
        raise
    if pixels is None:
        read_header(data)  # raises where only a decode function could have read it
        return data
    width, height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
    if found != f"uint8 {(height, width, channels)}":
        turned = " before its EXIF orientation, which the loader applies" if header.orientation > 1 else ""
        raise ValueError(
            f"decode made {found} of image {key!r}; it must give uint8 {(height, width, channels)}, the header's "
            f"height and width{turned} and the channels of Packing's image_mode, or None to leave it to the loader"
        )
    return pixels  # type: ignore[no-any-return]  # it is an array: its name says so
