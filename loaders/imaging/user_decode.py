"""A user's `decode` function: calling it, and checking its pixels against the header."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.header import Header, read_header

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


def user_pixels(decode: Decode, data: bytes, header: Header, channels: int, key: str) -> bytes | np.ndarray:
    """Call `decode` on an encoded image: uint8 (height, width, channels), or `data` itself if `decode` returns None.

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
        read_header(data)  # raises if only a decode function can read the image
        return data
    width, height = (header.height, header.width) if header.orientation >= 5 else (header.width, header.height)
    found = f"{pixels.dtype} {pixels.shape}" if isinstance(pixels, np.ndarray) else type(pixels).__name__
    if found != f"uint8 {(height, width, channels)}":
        before_exif = " before its EXIF orientation, which the loader applies" if header.orientation > 1 else ""
        raise ValueError(
            f"decode returned {found} for image {key!r}; it must return uint8 {(height, width, channels)}, the height "
            f"and width of the header{before_exif} and the channels of Packing's image_mode, or None to leave the "
            "image to the loader"
        )
    return pixels  # type: ignore[no-any-return]  # it is an array: its name says so
