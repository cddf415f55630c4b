"""JPEG 2000 (ISO/IEC 15444-1): size, channels and depth from the codestream; pixels from OpenJPEG in imagecodecs."""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
from PIL import Image

from patchnpack.loaders.imaging.readers.boxed.boxes import boxes
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind, whole_dtype

_CODESTREAM = b"\xff\x4f\xff\x51"


_CMYK = 12  # an enumerated colour space of the box `colr`


class _Layout(NamedTuple):
    """What the boxes and the SIZ segment say.

    Attributes:
        width, height: size in pixels.
        channels: components of the codestream.
        depths: bits of each component.
        signed: whether each component holds signed numbers.
        palette: columns of the palette, 0 without one.
        color_space: the enumerated colour space, 0 where the boxes give none.
    """

    width: int
    height: int
    channels: int
    depths: tuple[int, ...]
    signed: tuple[bool, ...]
    palette: int
    color_space: int


def header(data: bytes) -> Facts:
    """What the SIZ segment says, and the palette before it.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    layout = _layout(data)
    bits, channels = max(layout.depths), layout.palette or layout.channels
    unsupported = unsupported_kind(channels, bits)
    signed = any(layout.signed) and bits > 8
    # OpenJPEG's values of more bits, and of components that differ in kind, are not those of the file.
    is_read = bits <= 8 or (bits <= 16 and len(set(zip(layout.depths, layout.signed, strict=True))) == 1)
    return Facts(
        layout.width,
        layout.height,
        unsupported=unsupported,
        bands=channels if is_read else 0,
        dtype=whole_dtype(bits, signed=signed),
        bits=max(8, bits),
    )


def decode(data: bytes) -> np.ndarray | Image.Image:
    """The pixels, uint8 (height, width) or (height, width, C), or an image in CMYK.

    Samples of fewer than 8 bits are shifted up and signed ones are offset, as PIL does it.
    """
    layout = _layout(data)
    pixels: np.ndarray = codec("jpeg2k_decode")(data, numthreads=1)
    if not layout.palette and (min(layout.depths) < 8 or any(layout.signed)):
        offsets = [1 << (bits - 1) if signed else 0 for bits, signed in zip(layout.depths, layout.signed, strict=True)]
        shifts = [8 - bits for bits in layout.depths]
        planes = layout.channels if pixels.ndim == 3 else 1
        raised = (pixels.astype(np.int16) + np.array(offsets[:planes], np.int16)) << np.array(shifts[:planes], np.int16)
        pixels = raised.clip(0, 255).astype(np.uint8)
    if layout.color_space == _CMYK and pixels.shape[2:] == (4,):
        return Image.frombytes("CMYK", pixels.shape[1::-1], np.ascontiguousarray(pixels).tobytes())
    return pixels


def values(data: bytes) -> np.ndarray:
    """The values that are stored, of any depth and number of components, (height, width) or (height, width, C)."""
    pixels: np.ndarray = codec("jpeg2k_decode")(data, numthreads=1)
    return pixels


def _layout(data: bytes) -> _Layout:
    at, palette, color_space = 0, 0, 0
    if not data.startswith(_CODESTREAM):
        found = {box.kind: box for box in boxes(data)}
        if b"jp2c" not in found:
            raise ValueError("the JPEG 2000 file has no codestream")
        at = found[b"jp2c"].begin
        if b"jp2h" in found:
            for box in boxes(data, found[b"jp2h"].begin, found[b"jp2h"].end):
                if box.kind == b"pclr":
                    palette = data[box.begin + 2]
                elif box.kind == b"colr" and not color_space and data[box.begin] == 1:
                    (color_space,) = struct.unpack_from(">I", data, box.begin + 3)
    if data[at : at + 4] != _CODESTREAM:
        raise ValueError("the JPEG 2000 codestream does not begin with its size")
    right, bottom, left, top = struct.unpack_from(">IIII", data, at + 8)
    (channels,) = struct.unpack_from(">H", data, at + 40)
    precisions = data[at + 42 : at + 42 + 3 * channels : 3]
    if len(precisions) < channels or not channels:
        raise ValueError("the JPEG 2000 codestream ends in its size")
    depths = tuple((precision & 0x7F) + 1 for precision in precisions)
    signed = tuple(precision > 0x7F for precision in precisions)
    return _Layout(right - left, bottom - top, channels, depths, signed, palette, color_space)
