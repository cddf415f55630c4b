"""WebP (RFC 9649): size, alpha and frames from the RIFF chunks; pixels from libwebp in imagecodecs."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

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


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[np.ndarray]:
    """The frames `wanted`, ascending, composited on a transparent canvas: uint8 (height, width, 3), 4 with alpha.

    What is transparent below and above keeps no colour. Blending rounds as in libwebp's own decoder of animations.
    """
    has_alpha = bool(data[20] & _ALPHA)
    places = list(_animation_frames(data))
    facts = header(data)
    canvas = np.zeros((facts.height, facts.width, 4), np.uint8)
    number, kept = 0, None
    for want in wanted:
        while number <= want:
            if number >= len(places):
                raise ValueError(f"the WebP has {len(places)} frames, not frame {want}")
            if kept is not None:
                canvas[kept] = 0
            place, blends, is_disposed = places[number]
            # imagecodecs places a frame on an empty canvas, and neither blends nor disposes.
            pixels = codec("webp_decode")(data, index=number, hasalpha=True)[place]
            _paint(canvas[place], pixels, blends)
            kept = place if is_disposed else None
            number += 1
        yield canvas.copy() if has_alpha else canvas[..., :3].copy()


def _paint(below: np.ndarray, above: np.ndarray, blends: bool) -> None:
    """Put pixels over others, uint8 (h, w, 4), as libwebp does: in integers, with colours not premultiplied."""
    step = max(1, _BLOCK // above.shape[1])
    for top in range(0, len(above), step):
        over, under = above[top : top + step], below[top : top + step]
        alpha = over[..., 3]
        covers = alpha == 255 if blends else np.ones(alpha.shape, np.bool_)
        under[covers] = over[covers]
        mixes = ~covers & (alpha > 0)
        some, others = over[mixes].astype(np.uint64), under[mixes].astype(np.uint64)
        rest = others[:, 3:] * (256 - some[:, 3:]) >> 8
        both = some[:, 3:] + rest
        colours = (some[:, :3] * some[:, 3:] + others[:, :3] * rest) * ((1 << 24) // both) >> 24
        under[mixes] = np.concatenate([colours, both], 1)


def _animation_frames(data: bytes) -> Iterator[tuple[tuple[slice, slice], bool, bool]]:
    """Where each frame lies on the canvas (rows, columns), whether it is blended, and whether it is cleared after."""
    for kind, at, _ in _chunks(data):
        if kind == b"ANMF":
            if at + 16 > len(data):
                raise ValueError("the WebP ends in the header of a frame")
            left, top, width, height = (int.from_bytes(data[at + 3 * i : at + 3 * i + 3], "little") for i in range(4))
            flags = data[at + 15]
            rows, columns = slice(2 * top, 2 * top + height + 1), slice(2 * left, 2 * left + width + 1)
            yield (rows, columns), not flags & 2, bool(flags & 1)


def _frames(data: bytes) -> int:
    return max(1, sum(kind == b"ANMF" for kind, _, _ in _chunks(data)))


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind of each chunk, where its payload begins, and the payload's length."""
    at = 12
    while at + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, at)
        yield kind, at + 8, length
        at += 8 + length + length % 2
