"""JPEG (ITU-T T.81): header, and decoding of files that libjpeg warns about but reads to their end.

libjpeg calls everything a warning that it can work around, from a wrong version number to missing pixels, and keeps
only the first. Here a warning without consequence for the pixels is counted; one that means missing or wrong pixels is
an error. Oddities in the segments are removed before decoding again, so that they hide no damage behind them.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from patchnpack.loaders.imaging.readers import by_pil
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.readers.depth import to_8_bits
from patchnpack.loaders.imaging.readers.facts import Facts, unsupported_kind

DIRECT_COLORS = {"Gray", "YCbCr", "RGB"}  # colour spaces that libjpeg-turbo converts to RGB
EXTRANEOUS, SCAN, VERSION, ADOBE, PROFILE, ORDER = (
    "extraneous bytes",
    "scan parameters",
    "JFIF version",
    "Adobe marker",
    "ICC profile",
    "scan order",
)
# What libjpeg's warnings without consequence for the pixels begin with, or have behind a number.
_HARMLESS = {
    re.compile("Corrupt JPEG data: \\d+ extraneous bytes before marker"): EXTRANEOUS,
    re.compile("Invalid SOS parameters"): SCAN,
    re.compile("Warning: unknown JFIF revision"): VERSION,
    re.compile("Unknown Adobe color transform"): ADOBE,
    re.compile("Corrupt JPEG data: bad ICC marker"): PROFILE,
    re.compile("Inconsistent progression sequence"): ORDER,
}
_DAMAGE = re.compile("corrupt|premature", re.IGNORECASE)
# Markers: a frame of each coding process, start of scan, end of image, JFIF, and those without a segment.
_FRAMES = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
_LOSSLESS = {0xC3, 0xC7, 0xCB, 0xCF}
_SEQUENTIAL = {0xC0, 0xC1, 0xC5, 0xC9, 0xCD}
_SCAN, _END, _JFIF = 0xDA, 0xD9, 0xE0
_METADATA = {0xFE, *range(0xE1, 0xEE), 0xEF}  # comments, and applications' segments but JFIF and Adobe
_ALONE = {0x01, *range(0xD0, 0xD9)}
_MARKER = re.compile(rb"\xff+([^\x00\xff])", re.DOTALL)
_MARKER_IN_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])", re.DOTALL)


class _Segment(NamedTuple):
    marker: int
    skipped: int  # where the bytes before the marker begin: those of a scan, or extraneous ones
    begin: int  # where the marker begins, without fill bytes
    end: int
    after_scan: bool  # whether the bytes before the marker belong to a scan


class Mended(NamedTuple):
    """A JPEG without metadata, and without oddities in its segments.

    Attributes:
        data: the encoded image.
        warnings: kinds of oddities that were removed.
        ends: whether the file has its end marker; libjpeg reads up to it.
    """

    data: bytes
    warnings: set[str]
    ends: bool


def size_and_color(data: bytes) -> tuple[tuple[int, int], str]:
    """Width and height, and the colour space as simplejpeg names it. Raises ValueError."""
    height, width, color, _ = simplejpeg.decode_jpeg_header(data, strict=False)
    return (width, height), color


def header(data: bytes) -> tuple[Facts, bool]:
    """What the frame header says, and whether simplejpeg decodes the image.

    Raises:
        ValueError, struct.error: there is no frame header.
    """
    marker, at = _frame_header(data)
    bits, height, width, channels = struct.unpack_from(">BHHB", data, at + 4)
    is_read = bits <= 8 and channels in (1, 3, 4)
    facts = Facts(width, height, unsupported=unsupported_kind(channels, bits), bands=channels if is_read else 0)
    # simplejpeg refuses to decode a lossless JPEG as grey, and crashes at a lower scale.
    if facts.unsupported is not None or marker in _LOSSLESS:
        return facts, False
    try:
        size, color = size_and_color(data)
    except ValueError as error:
        if _DAMAGE.search(str(error)):
            raise
        return facts, False  # subsampling, for one, that turbojpeg has no name for
    return facts._replace(width=size[0], height=size[1]), color in DIRECT_COLORS


def _frame_header(data: bytes) -> tuple[int, int]:
    """The marker of the frame header and where it begins: a loop of its own, since every scan of shards runs it."""
    at = 2
    while at + 4 <= len(data):
        marker = data[at + 1]
        if data[at] != 0xFF or marker in (0x00, 0xFF):  # bytes between segments, or fill bytes
            found = _MARKER.search(data, at)
            if found is None:
                break
            at = found.end() - 2
        elif marker in _FRAMES:
            return marker, at
        elif marker in (_SCAN, _END):
            raise ValueError("the JPEG has no frame header before its pixels")
        else:
            at += 2 if marker in _ALONE else 2 + (data[at + 2] << 8 | data[at + 3])
    raise ValueError("the JPEG ends before its frame header")


def decode(data: bytes) -> np.ndarray | Image.Image:
    """The pixels of a JPEG that simplejpeg does not decode to RGB: CMYK, odd subsampling, rare coding processes.

    Raises:
        ValueError: the file ends early.
        OSError: it cannot be decoded.
    """
    mended = mend(data)  # also since PIL issues Python warnings for damaged metadata
    if not mended.ends:
        raise ValueError("Premature end of JPEG file")
    try:
        return by_pil.decode("Jpeg", mended.data)
    except (OSError, SyntaxError) as error:
        try:
            pixels: np.ndarray = codec("jpeg8_decode")(data)
        except ValueError:
            raise error from None
        if pixels.dtype != np.uint8 or pixels.shape[2:] not in ((), (3,)):
            raise
        return to_8_bits(pixels, data[_frame_header(data)[1] + 4])  # PIL refuses lossless JPEGs of fewer than 8 bits


def decode_with_warnings(
    decode: Callable[[bytes, bool], np.ndarray],
    data: bytes,
    error: ValueError,
    strict: bool,
    warn: Callable[[str], object],
) -> np.ndarray:
    """Decode again what `decode(data, strict)` refused with `error`, if libjpeg only warned of it.

    Raises:
        ValueError: pixels are missing or wrong.
    """
    first = _harmless(error)
    if first is None:
        raise error
    mended = mend(data)
    if strict and not mended.ends:
        raise ValueError("Premature end of JPEG file") from error
    kinds = mended.warnings | {first}
    try:
        pixels = decode(mended.data, strict)
    except ValueError as later:
        second = _harmless(later)
        if second is None:
            raise
        pixels = decode(mended.data, False)
        kinds.add(second)
    for kind in sorted(kinds):
        warn(kind)
    return pixels


def _harmless(error: ValueError) -> str | None:
    """The kind of libjpeg's warning; None for an error and for a warning that means missing or wrong pixels."""
    return next((kind for pattern, kind in _HARMLESS.items() if pattern.match(str(error))), None)


def mend(data: bytes) -> Mended:
    """Remove metadata, and what libjpeg warns of in segments: bytes between them, and fields that it ignores."""
    out, warnings = bytearray(data[:2]), set[str]()
    is_sequential = False
    for segment in _segments(data):
        if segment.after_scan:
            out += data[segment.skipped : segment.begin]
        elif data[segment.skipped : segment.begin].strip(b"\xff"):
            warnings.add(EXTRANEOUS)
        if segment.marker in _METADATA:
            continue
        body = bytearray(data[segment.begin : segment.end])
        if segment.marker in _FRAMES:
            is_sequential = segment.marker in _SEQUENTIAL
        elif segment.marker == _SCAN and is_sequential and body[-3:] != b"\x00\x3f\x00":
            body[-3:] = b"\x00\x3f\x00"
            warnings.add(SCAN)
        elif segment.marker == _JFIF and body[4:9] == b"JFIF\x00" and len(body) > 9 and body[9] != 1:
            body[9] = 1
            warnings.add(VERSION)
        out += body
        if segment.marker == _END:
            return Mended(bytes(out), warnings, True)
    return Mended(bytes(out), warnings, False)


def _segments(data: bytes) -> Iterator[_Segment]:
    """The segments behind the start marker; of a file cut short, the bytes of its last scan are one with marker 0."""
    at, in_scan = 2, False
    while found := (_MARKER_IN_SCAN if in_scan else _MARKER).search(data, at):
        marker, begin = found[1][0], found.end() - 2
        end = begin + 2
        if marker not in _ALONE and marker != _END:
            if end + 2 > len(data):
                break
            end += int.from_bytes(data[end : end + 2], "big")
        yield _Segment(marker, at, begin, min(end, len(data)), in_scan)
        if marker == _END:
            return
        at, in_scan = end, marker == _SCAN
    if in_scan:
        yield _Segment(0, at, len(data), len(data), True)
