"""PNG (W3C PNG, third edition): size, depth and frames from the chunks; pixels from libpng in imagecodecs."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
from PIL import Image

from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind, whole_dtype

_SIGNATURE = 8  # bytes before the first chunk
_NONE, _BACKGROUND, _PREVIOUS, _OVER = 0, 1, 2, 1  # disposals, and a blending
_BANDS = {0: 1, 2: 3, 3: 3, 4: 2, 6: 4}  # by colour type; palettes become RGB
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
    width, height, bits, color = struct.unpack_from(">IIBB", data, at)
    (checksum,) = struct.unpack_from(">I", data, at + length)
    if zlib.crc32(data[at - 4 : at + length]) != checksum:
        raise ValueError("the checksum of the PNG's header is wrong")
    listed = controls = 0
    bands = _BANDS.get(color, 0)
    for kind, at, _ in chunks:
        if kind == b"acTL":
            (listed,) = struct.unpack_from(">I", data, at)
        controls += kind == b"fcTL"
        bands += kind == b"tRNS" and bands % 2
        if kind == b"IDAT":
            break
    else:
        raise ValueError("the PNG has no pixels")
    pages = _frames(chunks, listed, controls) if 0 < listed <= _MOST_FRAMES else 1
    return Facts(width, height, pages, None, unsupported_kind(1, bits), bands, whole_dtype(bits), max(8, bits))


def decode(data: bytes) -> np.ndarray:
    """The pixels of the first frame, (height, width) or (height, width, C), uint8 or, of 16 bits, uint16.

    Palettes become RGB or RGBA.
    """
    pixels: np.ndarray = codec("png_decode")(data)
    return pixels


def frames(data: bytes, wanted: Sequence[int]) -> Iterator[Image.Image]:
    """The frames `wanted`, ascending, composited. An image that is not part of the animation is the first.

    PIL's `paste` blends them, as in PIL's own animations, whose disposal depends on its version and on the frames that
    were asked for.
    """
    width, height = struct.unpack_from(">II", data, _SIGNATURE + 8)
    canvas: Image.Image | None = None
    restored: tuple[Image.Image, tuple[int, int]] | None = None  # what the next frame finds, and where
    for number, (control, encoded) in enumerate(_encoded(data)):
        pixels = decode(encoded)
        image = Image.fromarray(pixels).convert("RGBA" if pixels.ndim == 3 and pixels.shape[2] in (2, 4) else "RGB")
        across, down, left, top, _, _, disposal, blend = control or (width, height, 0, 0, 0, 0, _NONE, 0)
        if image.size != (across, down) or left + across > width or top + down > height:
            raise ValueError(f"frame {number} of the PNG is outside of its canvas")
        if canvas is None or control is None:
            canvas = Image.new(image.mode, (width, height))
        if restored is not None:
            canvas.paste(*restored)
        before = canvas.crop((left, top, left + across, top + down))
        canvas.paste(image, (left, top), image if blend == _OVER and image.mode == "RGBA" and number else None)
        cleared = disposal == _BACKGROUND or (disposal == _PREVIOUS and not number)
        restored = (Image.new(image.mode, image.size) if cleared else before, (left, top))
        if disposal == _NONE:
            restored = None
        if number in wanted:
            yield canvas.copy()
        if number >= wanted[-1]:
            return
    raise ValueError(f"the PNG has no frame {wanted[-1]}")


def _encoded(data: bytes) -> Iterator[tuple[tuple[int, ...] | None, bytes]]:
    """Each frame as a PNG of its own, and its control chunk; None for an image that is not part of the animation."""
    shared, body = b"", b""  # chunks before all pixels, and the pixels of a frame
    control: tuple[int, ...] | None = None
    size = data[_SIGNATURE + 8 : _SIGNATURE + 16]
    for kind, at, length in _chunks(data):
        payload = data[at : at + length]
        if kind in (b"PLTE", b"tRNS"):
            shared += _chunk(kind, payload)
        elif kind in (b"IDAT", b"fdAT"):
            body += payload if kind == b"IDAT" else payload[4:]
        elif kind in (b"fcTL", b"IEND"):
            if body:
                head = _chunk(b"IHDR", size + data[_SIGNATURE + 16 : _SIGNATURE + 21])
                yield control, data[:_SIGNATURE] + head + shared + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")
            body = b""
            if kind == b"fcTL":
                control, size = struct.unpack_from(">IIIIHHBB", payload, 4), payload[4:12]


def _chunk(kind: bytes, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


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
