"""WebP (RFC 9649): size, alpha and frames from the RIFF chunks; pixels from libwebp in imagecodecs."""

from __future__ import annotations

import struct

import numpy as np

from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts

_ALPHA, _ANIMATION = 0x10, 0x02  # flags of a VP8X chunk


def header(data: bytes) -> Facts:
    """What the RIFF chunks say.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    kind, at = data[12:16], 20
    if kind == b"VP8X":
        flags, size = data[at], data[at + 4 : at + 10]
        if len(size) < 6:
            raise ValueError("the WebP ends in its header")
        width, height = 1 + int.from_bytes(size[:3], "little"), 1 + int.from_bytes(size[3:], "little")
        return Facts(width, height, _frames(data) if flags & _ANIMATION else 1)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, at + 1)
        return Facts(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF))
    if kind == b"VP8 ":
        if data[at + 3 : at + 6] != b"\x9d\x01\x2a":
            raise ValueError("the WebP has no key frame")
        width, height = struct.unpack_from("<HH", data, at + 6)
        return Facts(width & 0x3FFF, height & 0x3FFF)
    raise ValueError(f"the WebP begins with a chunk {kind!r}; only VP8, VP8L and VP8X chunks are known")


def decode(data: bytes) -> np.ndarray:
    """The pixels of the first frame, uint8 (height, width, 3), or (height, width, 4) if the image has alpha."""
    # imagecodecs drops the alpha of animations unless it is asked for it, and adds one to images without.
    has_alpha = bool(data[20] & _ALPHA) if data[12:16] == b"VP8X" else None
    pixels: np.ndarray = codec("webp_decode")(data, index=0, hasalpha=has_alpha)
    return pixels


def _frames(data: bytes) -> int:
    frames, at = 0, 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        frames += kind == b"ANMF"
        at += 8 + length + length % 2
    return max(1, frames)
