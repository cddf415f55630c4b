"""PNG (W3C PNG, third edition): size, depth and frames from the chunks; pixels from libpng in imagecodecs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind

_SIGNATURE = 8  # bytes before the first chunk


def header(data: bytes) -> Facts:
    """What the chunks before the pixels say.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    chunks = _chunks(data)
    kind, at, length = next(chunks, (b"", 0, 0))
    if kind != b"IHDR" or length != 13:
        raise ValueError(f"the PNG begins with a chunk {kind!r} of {length} bytes; it must begin with IHDR, 13 bytes")
    width, height, bits = struct.unpack_from(">IIB", data, at)
    (checksum,) = struct.unpack_from(">I", data, at + length)
    if zlib.crc32(data[at - 4 : at + length]) != checksum:
        raise ValueError("the checksum of the PNG's header is wrong")
    pages = 1
    for kind, at, _ in chunks:
        if kind == b"acTL":
            (pages,) = struct.unpack_from(">I", data, at)
        if kind == b"IDAT":
            break
    else:
        raise ValueError("the PNG has no pixels")
    return Facts(width, height, max(1, pages), unsupported=unsupported_kind(1, bits))


def decode(data: bytes) -> np.ndarray:
    """The pixels of the first frame, uint8 (height, width) or (height, width, C); palettes become RGB or RGBA."""
    pixels: np.ndarray = codec("png_decode")(data)
    return pixels


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, where its payload begins, and the payload's length."""
    at = _SIGNATURE
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, length
        at += 12 + length
