"""JPEG 2000 (ISO/IEC 15444-1): size, channels and depth from the codestream; pixels from OpenJPEG in imagecodecs."""

from __future__ import annotations

import struct

import numpy as np

from patchnpack.loaders.imaging.readers.boxes import boxes
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind

_CODESTREAM = b"\xff\x4f\xff\x51"


def header(data: bytes) -> Facts:
    """What the SIZ segment says, and the palette before it.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    at, palette = 0, 0
    if not data.startswith(_CODESTREAM):
        found = {box.kind: box for box in boxes(data)}
        if b"jp2c" not in found:
            raise ValueError("the JPEG 2000 file has no codestream")
        at = found[b"jp2c"].begin
        if b"jp2h" in found:
            inner = {box.kind: box for box in boxes(data, found[b"jp2h"].begin, found[b"jp2h"].end)}
            if b"pclr" in inner:
                palette = data[inner[b"pclr"].begin + 2]
    if data[at : at + 4] != _CODESTREAM:
        raise ValueError("the JPEG 2000 codestream does not begin with its size")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    (channels,) = struct.unpack_from(">H", data, at + 40)
    depths = data[at + 42 : at + 42 + 3 * channels : 3]
    if len(depths) < channels or not channels:
        raise ValueError("the JPEG 2000 codestream ends in its size")
    bits = max((depth & 0x7F) + 1 for depth in depths)
    return Facts(right - left, bottom - top, unsupported=unsupported_kind(palette or channels, bits))


def decode(data: bytes) -> np.ndarray:
    """The pixels, uint8 (height, width) or (height, width, C)."""
    pixels: np.ndarray = codec("jpeg2k_decode")(data, numthreads=1)
    return pixels
