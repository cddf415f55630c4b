"""What a data set gives as an image: checking its type, reading its file, and telling damage from mistakes."""

from __future__ import annotations

import os
import struct
import threading
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

from patchnpack.loaders.datasets.adapter import Picture
from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.formats import EXTENSIONS, VIDEO_EXTENSIONS, is_image
from patchnpack.loaders.imaging.header import decode_errors_as_bad_image
from patchnpack.loaders.imaging.user_decode import named
from patchnpack.loaders.remote.addresses import redact
from patchnpack.loaders.remote.backend import import_optional
from patchnpack.packer.dtypes import DTYPES

_CHANNELS = (1, 3, 4)
_KNOWN = frozenset((*EXTENSIONS, *VIDEO_EXTENSIONS))
_MORE = 1 << 20  # bytes to read where a file has not ended
# What PIL raises on damaged files. Its ValueError may also be a mistake of the data set's own code.
_DAMAGE = (OSError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)

_load_locks = [threading.Lock() for _ in range(64)]


def is_picture(value: Any) -> bool:
    """Return whether a member of an item is an image, by its type and first bytes."""
    if isinstance(value, bytes | bytearray | memoryview):
        return is_image(bytes(value[:16]))
    if isinstance(value, np.ndarray | torch.Tensor):
        return value.ndim == 3 or (value.ndim == 2 and "uint8" in str(value.dtype))
    return isinstance(value, Image.Image) or is_stored(value)


def is_stored(value: Any) -> bool:
    """Return whether `value` is an image as Hugging Face's `Image` stores it: a dict of bytes and path."""
    return isinstance(value, Mapping) and value.keys() == {"bytes", "path"}


def is_list_of_pictures(value: Any) -> bool:
    """Return whether a member of an item is a list of images, or an array or tensor of several."""
    return holds_several(value) and len(value) > 0 and all(map(is_picture, value))


def holds_several(value: Any) -> bool:
    """Return whether a value is made to hold several images, or none.

    It is a list, a tuple, an array (images, height, width, C) or a tensor (images, C, height, width).
    """
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray | torch.Tensor) and value.ndim == 4)


def as_picture(value: Any, row: str) -> Picture:
    """Return the image that a value is, reads or describes.

    Args:
        value: encoded bytes, a PIL image, an array (height, width, C) of one of `DTYPES`, a uint8 tensor (C, height,
            width), the path of a file, or a dict of bytes and path.
        row: names the row in errors.

    Raises:
        BadImage: the image is missing.
        OSError: the file cannot be read.
        ValueError: the value is none of these.
    """
    if isinstance(value, bytes):
        return value
    if isinstance(value, Image.Image):
        return value if (data := _undecoded(value)) is None else data
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if is_stored(value):
        return stored_bytes(value["bytes"], value["path"], row)
    if isinstance(value, str | os.PathLike):
        return read_file(os.fspath(value), row)
    if value is None:
        raise BadImage("it has no image: the value is None", "read")
    if is_list_of_pictures(value):
        raise ValueError(
            f"the image of {row} is a {type(value).__name__} of {len(value)} images; give sample='members' to make "
            "each row a sample of several images"
        )
    if isinstance(value, torch.Tensor):
        if value.dtype != torch.uint8 or value.ndim != 3 or value.shape[0] not in _CHANNELS:
            raise ValueError(_not_pixels(f"a {value.dtype} tensor {tuple(value.shape)}", row))
        return np.ascontiguousarray(value.permute(1, 2, 0).numpy())
    if isinstance(value, np.ndarray):
        if value.dtype.name not in DTYPES or value.ndim not in (2, 3):
            raise ValueError(_not_pixels(f"a {value.dtype} array {value.shape}", row))
        return value
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    raise ValueError(
        f"the image of {row} is a {kind}; it must be encoded bytes, a PIL image, a uint8 array (height, width, C) or "
        "the path of a file: name the member that holds the image with image="
    )


def check_colors(image: Picture, row: str) -> None:
    """Raise ValueError for an array that 8-bit colours do not hold."""
    if isinstance(image, np.ndarray) and (
        image.dtype != np.uint8 or image.shape[2:] not in ((), *((c,) for c in _CHANNELS))
    ):
        raise ValueError(_not_pixels(f"a {image.dtype} array {image.shape}", row))


def _undecoded(image: Image.Image) -> bytes | None:
    """Return the bytes of a JPEG that PIL has opened and not decoded; the loader decodes it in half the time."""
    if type(image) is not JpegImageFile or image.decoderconfig or getattr(image, "_im", image) is not None:
        return None  # loaded, or told to decode at another size or in another mode
    with _lock_of(image):
        if image.fp is None:
            return None
        image.fp.seek(0)
        return bytes(image.fp.read())


def _not_pixels(found: str, row: str) -> str:
    return (
        f"the image of {row} is {found}; it must be bytes, a PIL image, or uint8: an array (height, width, C) or a "
        "tensor (C, height, width). Remove ToTensor, Normalize and resizing from the data set's transform: the loader "
        "sizes the images, and the model normalizes them. Values of other bands, or arrays of "
        f"{', '.join(DTYPES[1:])}, need Packing(channels=..., dtype=...) or convert="
    )


def stored_bytes(data: bytes | None, path: str | None, row: str) -> bytes:
    """Return the encoded image that Hugging Face's `Image` stores: its bytes or, without them, those of its file."""
    if data is not None:
        return _named(bytes(data), path or "")
    if not path:
        raise BadImage("it has no image: neither bytes nor a path", "read")
    return read_file(path, row)


def _named(data: bytes, path: str) -> bytes:
    """The bytes, with the name of their file where only a user's reader could read it."""
    ending = os.path.splitext(path)[1][1:].lower()
    return named(data, path) if ending and ending not in _KNOWN else data


def read_file(path: str, row: str) -> bytes:
    """Return the bytes of a file, local or at an address that fsspec opens.

    Raises:
        OSError: the file cannot be read; the message names the file and the row.
    """
    try:
        if "://" in path:
            with import_optional("fsspec").open(path, "rb") as file:
                return _named(bytes(file.read()), path)
        # Not `open`, whose buffers and objects cost several times as much.
        fd = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        try:
            size = os.fstat(fd).st_size
            data = os.read(fd, size)
            while len(data) < size and (more := os.read(fd, _MORE)):  # a read returns at most 2 GiB, or less
                data += more
        finally:
            os.close(fd)
        return _named(data, path)
    except OSError as error:
        why = error.strerror or f"{type(error).__name__}: {error}"
        raise OSError(
            f"the file {redact(path)!r} of {row} cannot be read: {why}; restore the file, or leave the row out of the "
            "data set"
        ) from error


def damage(error: Exception) -> str | None:
    """Return what is wrong with a file that PIL could not read inside a data set; None for all other errors."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    inside = "" if frames is None else str(frames.tb_frame.f_globals.get("__name__"))
    if not isinstance(error, _DAMAGE) or not inside.startswith("PIL.") or getattr(error, "errno", None) is not None:
        return None
    return f"{type(error).__name__}: {error}"


def load(image: Image.Image) -> None:
    """Decode a PIL image that its data set has only opened. Threads may hold the same image.

    Raises:
        BadImage: the image is damaged.
    """
    with _lock_of(image), decode_errors_as_bad_image():
        image.load()


def _lock_of(image: Image.Image) -> threading.Lock:
    return _load_locks[id(image) // 16 % len(_load_locks)]


def _renew_locks() -> None:
    # A thread that held a lock in the parent does not exist in a forked child.
    _load_locks[:] = [threading.Lock() for _ in _load_locks]


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_locks)
