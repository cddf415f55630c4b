"""PNG (W3C PNG, third edition): size, depth and frames from the chunks; pixels from libpng in imagecodecs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from PIL import Image

from patchnpack.loaders.imaging.readers import by_pil
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind

_SIGNATURE = 8  # bytes before the first chunk
_MOST_FRAMES = 1 << 31  # of an animation; PIL ignores one that says that it has more


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
    listed = controls = 0
    for kind, at, _ in chunks:
        if kind == b"acTL":
            (listed,) = struct.unpack_from(">I", data, at)
        controls += kind == b"fcTL"
        if kind == b"IDAT":
            break
    else:
        raise ValueError("the PNG has no pixels")
    pages = _frames(chunks, listed, controls) if 0 < listed <= _MOST_FRAMES else 1
    return Facts(width, height, pages, unsupported=unsupported_kind(1, bits))


def decode(data: bytes) -> np.ndarray:
    """The pixels of the first frame, uint8 (height, width) or (height, width, C); palettes become RGB or RGBA."""
    pixels: np.ndarray = codec("png_decode")(data)
    return pixels


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[Image.Image]:
    """The frames `wanted`, ascending, composited. An image that is not part of the animation is the first."""
    return by_pil.frames("Png", data, wanted)


def _frames(chunks: Iterator[tuple[bytes, int, int]], listed: int, controls: int) -> int:
    """Count the frames: those listed, as far as they are there, and an image before them that is none of them.

    Of a file without an end, all that are listed count.

    Args:
        chunks: those behind the first with pixels.
        listed: frames that the animation says it has.
        controls: frames that begin before the first pixels.
    """
    is_apart, ends = not controls, False
    with suppress(struct.error):  # the file was cut
        for kind, _, _ in chunks:
            controls += kind == b"fcTL"
            ends |= kind == b"IEND"
    return max(1, (min(listed, controls) if ends else listed) + is_apart)


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, where its payload begins, and the payload's length."""
    at = _SIGNATURE
    while at < len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        yield kind, at + 8, length
        at += 12 + length
