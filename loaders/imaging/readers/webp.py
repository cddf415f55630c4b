"""WebP (RFC 9649): size, alpha and frames from the RIFF chunks; pixels from libwebp in imagecodecs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts

_ALPHA, _ANIMATION = 0x10, 0x02  # flags of a VP8X chunk
_BLOCK = 1 << 18  # pixels that are blended at a time, since the arithmetic takes many bytes for each


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
        return Facts(width, height, _frames(data) if flags & _ANIMATION else 1, bands=4 if flags & _ALPHA else 3)
    if kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, at + 1)
        return Facts(1 + (packed & 0x3FFF), 1 + (packed >> 14 & 0x3FFF), bands=3 + (packed >> 28 & 1))
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


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames `wanted`, ascending, composited on a transparent canvas: uint8 (height, width, 3), 4 with alpha.

    The pixels are those of libwebp's own decoder of animations, which PIL uses.
    """
    facts, places = header(data), list(_places(data))
    canvas = np.zeros((facts.height, facts.width, 4), np.uint8)
    before: _Place | None = None
    is_clear = True  # whether nothing but the frame before is on the canvas
    for number in range(wanted[-1] + 1):
        if number >= len(places):
            raise ValueError(f"the WebP has {len(places)} frames, not frame {number}")
        place = places[number]
        # imagecodecs places a frame on an empty canvas, and neither blends nor disposes.
        pixels = codec("webp_decode")(data, index=number, hasalpha=True)[place.at]
        mixes = np.full(canvas.shape[:2], place.blends)
        if before is not None and before.is_disposed:
            canvas[before.at], mixes[before.at] = 0, False
            is_clear = is_clear or before.covers
        else:
            is_clear = before is None
        if is_clear:
            mixes[:] = False
        _paint(canvas[place.at], pixels, mixes[place.at])
        is_clear = is_clear or (place.covers and not (place.blends and place.has_alpha))
        before = place
        if number in wanted:
            yield canvas.copy() if data[20] & _ALPHA else canvas[..., :3].copy()


class _Place(NamedTuple):
    """What the container says of a frame.

    Attributes:
        at: rows and columns of the canvas.
        covers: whether it covers the canvas.
        has_alpha: whether its pixels have alpha.
        blends: whether it is blended with the canvas.
        is_disposed: whether the next frame finds the canvas cleared at its place.
    """

    at: tuple[slice, slice]
    covers: bool
    has_alpha: bool
    blends: bool
    is_disposed: bool


def _places(data: bytes) -> Iterator[_Place]:
    facts = header(data)
    for kind, at, _ in _chunks(data):
        if kind == b"ANMF":
            if at + 29 > len(data):
                raise ValueError("the WebP ends in the header of a frame")
            left, top, width, height = (int.from_bytes(data[at + 3 * i : at + 3 * i + 3], "little") for i in range(4))
            rows, columns = slice(2 * top, 2 * top + height + 1), slice(2 * left, 2 * left + width + 1)
            covers = (columns.start, rows.start, width + 1, height + 1) == (0, 0, facts.width, facts.height)
            inner, flags = data[at + 16 : at + 20], data[at + 15]
            has_alpha = inner == b"ALPH" or (inner == b"VP8L" and bool(data[at + 28] & 0x10))
            yield _Place((rows, columns), covers, has_alpha, not flags & 2, bool(flags & 1))


def _paint(below: np.ndarray, above: np.ndarray, mixes: np.ndarray) -> None:
    """Put pixels over others, uint8 (h, w, 4), blended where `mixes`, bool (h, w), by libwebp's integer arithmetic."""
    step = max(1, _BLOCK // above.shape[1])
    for top in range(0, len(above), step):
        over, under, mixed = (each[top : top + step] for each in (above, below, mixes))
        alpha = over[..., 3]
        copied = ~mixed | (alpha == 255)
        under[copied] = over[copied]
        blended = ~copied & (alpha > 0)
        some, others = over[blended].astype(np.uint64), under[blended].astype(np.uint64)
        rest = others[:, 3:] * (256 - some[:, 3:]) >> 8
        both = some[:, 3:] + rest
        colours = (some[:, :3] * some[:, 3:] + others[:, :3] * rest) * ((1 << 24) // both) >> 24
        under[blended] = np.concatenate([colours, both], 1)


def _frames(data: bytes) -> int:
    return max(1, sum(kind == b"ANMF" for kind, _, _ in _chunks(data)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, where its payload begins, and the payload's length."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, length
        at += 8 + length + length % 2
