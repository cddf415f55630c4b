"""A user's `decode` function: calling it, and checking its pixels against the header."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.header import Header, read_header
from patchnpack.loaders.imaging.values.bands import band_request
from patchnpack.packer import Packing
from patchnpack.packer.dtypes import DTYPES

Decode = Callable[[bytes], np.ndarray | None]


def check_decode(decode: object) -> None:
    """Raise ValueError if `decode` is neither None nor callable with one argument."""
    if decode is None:
        return
    wanted = "it must be a function from encoded bytes to an array, or None"
    if not callable(decode):
        raise ValueError(f"decode is {decode!r}; {wanted}")
    try:
        signature = inspect.signature(decode)
    except (TypeError, ValueError):  # some functions written in C have none
        return
    try:
        signature.bind(None)
    except TypeError as error:
        name = getattr(decode, "__name__", type(decode).__name__)
        raise ValueError(f"decode is {name}{signature}; {wanted} ({error})") from error


def user_pixels(
    decode: Decode, data: bytes, header: Header, packing: Packing, key: str
) -> tuple[bytes | np.ndarray, Header]:
    """Call `decode` on an encoded image. Return its pixels, or `data` if it returns None, and their header.

    The pixels are (height, width, C) of the packing's channels and dtype.

    Raises:
        BadImage: `decode` raised it, or returned None for an image that only a `decode` function can read.
        ValueError: `decode` returned another shape or type.

    Any other exception from `decode` propagates, with a note that names the key.
    """
    try:
        pixels: Any = decode(data)
    except BadImage:
        raise
    except Exception as error:
        error.add_note(
            f"raised by decode for the image with key {key!r}; for a damaged image, decode may raise "
            "patchnpack.loaders.BadImage(reason), and the image is counted and skipped"
        )
        raise
    if pixels is None:
        if band_request(packing) is None:
            read_header(data)  # raises if only a decode function can read the image
        return data, header
    width, height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
    wanted = f"{packing.dtype} {(height, width, packing.channels)}"
    if found != wanted:
        before_exif = " before its EXIF orientation, which the loader applies" if header.orientation > 1 else ""
        raise ValueError(
            f"decode returned {found} for image {key!r}; it must return {wanted}, the height and width of the "
            f"header{before_exif} and the channels and dtype of Packing, or None to leave the image to the loader"
        )
    return pixels, header._replace(bands=packing.channels, dtype=DTYPES.index(packing.dtype))
