"""JPEG XL (ISO/IEC 18181-1): size, depth and animation from the codestream; pixels from libjxl in imagecodecs."""

from __future__ import annotations

import numpy as np

from patchnpack.loaders.imaging.readers.boxed.boxes import boxes
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.depth import to_8_bits
from patchnpack.loaders.imaging.readers.facts import SEVERAL, Facts, unsupported_kind, whole_dtype

_CODESTREAM = b"\xff\x0a"
_RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
_HEADER = 256  # bytes that the header needs at most, by far

# Ways to write a number: the bits of each choice, and what is added to them.
_SIZE = ((9, 1), (13, 1), (18, 1), (30, 1))
_PREVIEW, _PREVIEW_DIV8 = ((6, 1), (8, 65), (10, 321), (12, 1345)), ((0, 16), (0, 32), (5, 1), (9, 33))
_WHOLE_BITS, _FLOAT_BITS = ((0, 8), (0, 10), (0, 12), (6, 1)), ((0, 32), (0, 16), (0, 24), (6, 1))
_EXTRA_CHANNELS = ((0, 0), (0, 1), (4, 2), (12, 1))
_ENUM, _NAME, _SHIFT = (
    ((0, 0), (0, 1), (4, 2), (6, 18)),
    ((0, 0), (4, 0), (5, 16), (10, 48)),
    ((0, 0), (0, 3), (0, 4), (3, 1)),
)
_CFA = ((0, 1), (2, 0), (4, 3), (8, 19))
_ALPHA, _SPOT, _COLOR_FILTER = 0, 2, 5  # kinds of extra channels
_TICKS, _TICKS_BY = ((0, 100), (0, 1000), (10, 1), (30, 1)), ((0, 1), (0, 1001), (8, 1), (10, 1))
_LOOPS = ((0, 0), (3, 0), (16, 0), (32, 0))


class _Bits:
    """Reads bits from the lowest of each byte on."""

    def __init__(self, data: bytes) -> None:
        self._bits, self._left = int.from_bytes(data, "little"), 8 * len(data)

    def read(self, count: int) -> int:
        """The next bits as a number."""
        self._left -= count
        if self._left < 0:
            raise ValueError("the JPEG XL ends in its header")
        value = self._bits & ((1 << count) - 1)
        self._bits >>= count
        return value

    def choice(self, ways: tuple[tuple[int, int], ...]) -> int:
        """A number written in one of four ways."""
        bits, offset = ways[self.read(2)]
        return self.read(bits) + offset


def header(data: bytes) -> Facts:
    """What the codestream says. The size is upright, since libjxl turns the pixels.

    Raises:
        ValueError, struct.error: the data end early or are damaged.
    """
    return _header(data)[0]


def decode(data: bytes) -> np.ndarray:
    """The upright pixels of the first frame, uint8 (height, width) or (height, width, C)."""
    pixels: np.ndarray = codec("jpegxl_decode")(data, index=0, numthreads=1)
    return to_8_bits(pixels, _header(data)[1])


def values(data: bytes) -> np.ndarray:
    """The upright values that are stored, uint8, uint16 or float32."""
    pixels: np.ndarray = codec("jpegxl_decode")(data, index=0, numthreads=1)
    return pixels


def _header(data: bytes) -> tuple[Facts, int]:
    """What the codestream says, and the bits per channel."""
    bits = _Bits(_codestream(data)[2:])
    width, height = _size(bits)
    if bits.read(1):  # all fields have their defaults
        return Facts(width, height, 1, 1), 8  # RGB of 8 bits
    is_animated, orientation = False, 1
    if bits.read(1):  # fields that few images have
        orientation = bits.read(3) + 1
        if bits.read(1):
            _size(bits)  # of display
        if bits.read(1):
            _preview_size(bits)
        is_animated = bool(bits.read(1))
        if is_animated:
            bits.choice(_TICKS), bits.choice(_TICKS_BY), bits.choice(_LOOPS), bits.read(1)
    is_float = bits.read(1)
    depth = bits.choice(_FLOAT_BITS if is_float else _WHOLE_BITS)
    if is_float:
        bits.read(4)
    bits.read(1)  # whether 16-bit buffers suffice
    extra = bits.choice(_EXTRA_CHANNELS)
    if orientation >= 5:
        width, height = height, width
    pages = SEVERAL if is_animated else 1
    bands, dtype = _colors(bits, extra) + extra, "float32" if is_float else whole_dtype(depth)
    unsupported = unsupported_kind(3 + extra, depth)
    return Facts(width, height, pages, 1, unsupported, bands, dtype, max(8, depth)), depth


def _colors(bits: _Bits, extra: int) -> int:
    """Colour channels, 1 or 3, as the fields behind the number of extra channels say."""
    for _ in range(extra):
        if bits.read(1):  # an alpha of 8 bits
            continue
        kind, is_float = bits.choice(_ENUM), bits.read(1)
        bits.choice(_FLOAT_BITS if is_float else _WHOLE_BITS)
        if is_float:
            bits.read(4)
        bits.choice(_SHIFT), bits.read(8 * bits.choice(_NAME))
        if kind == _ALPHA:
            bits.read(1)
        elif kind == _SPOT:
            bits.read(4 * 16)
        elif kind == _COLOR_FILTER:
            bits.choice(_CFA)
    bits.read(1)  # whether the colours are XYB
    if bits.read(1):  # sRGB
        return 3
    bits.read(1)  # whether there is an ICC profile
    return 1 if bits.choice(_ENUM) == 1 else 3


def _codestream(data: bytes) -> bytes:
    if data.startswith(_CODESTREAM):
        return data[:_HEADER]
    begin = b""
    for kind, at, end in boxes(data):
        if kind == b"jxlc":
            return data[at : min(end, at + _HEADER)]
        if kind == b"jxlp":  # a part of the codestream, behind its number
            begin += data[at + 4 : min(end, at + 4 + _HEADER)]
            if len(begin) >= _HEADER:
                break
    return begin


def _size(bits: _Bits) -> tuple[int, int]:
    is_small = bits.read(1)

    def side() -> int:
        return 8 * (bits.read(5) + 1) if is_small else bits.choice(_SIZE)

    height = side()
    ratio = bits.read(3)
    return (height * _RATIOS[ratio][0] // _RATIOS[ratio][1] if ratio else side()), height


def _preview_size(bits: _Bits) -> None:
    ways = _PREVIEW_DIV8 if bits.read(1) else _PREVIEW
    bits.choice(ways)
    if not bits.read(3):
        bits.choice(ways)
