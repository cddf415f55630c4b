"""How an image was held: its orientation, by EXIF, XMP or its container, as `PIL.ImageOps.exif_transpose` finds it.

Everything is parsed here, because PIL raises an error or issues a warning for a damaged block, and decodes a PNG first.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

from patchnpack.loaders.imaging.signatures import is_jpeg, is_png, is_tiff, is_webp

_ORIENTATION, _EXTRA, _XMP = 0x0112, 338, 700  # TIFF tags
# TIFF field types: how one value is unpacked. Bytes (1), text (2) and undefined data (7) hold no number for PIL.
_NUMBERS = {3: "H", 4: "I", 5: "II", 6: "b", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I", 16: "Q"}
_BYTES = {1, 2, 7}
_BIG_TIFFS = (b"II\x2b\x00", b"MM\x00\x2b")
_TIFFS = {b"II\x2a\x00", b"MM\x00\x2a", b"MM\x2a\x00", b"II\x00\x2a", *_BIG_TIFFS}  # PIL accepts the swapped ones, too

_EXIF_PREFIX = b"Exif\x00\x00"
_XMP_PREFIX = b"http://ns.adobe.com/xap/1.0/\x00"
_NO_LENGTH = {0x01, *range(0xD0, 0xD9)}  # JPEG markers without a segment
_END_OF_HEADER = {0xD9, 0xDA}  # JPEG markers: end of image, start of scan
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')
_MAX_TEXT = 1 << 20  # bytes of a decompressed PNG text, as in PIL
_DAMAGED = (struct.error, ValueError, IndexError, zlib.error)


class _Metadata(NamedTuple):
    """The blocks of an image that may hold its orientation; EXIF blocks are TIFF headers with directories."""

    exif: bytes | None = None
    xmp: bytes | None = None


def orientation(data: bytes, directory: int | None = None) -> int:
    """The orientation of an encoded image, 1 to 8, numbered as in EXIF; 1 if it is absent or unreadable.

    Of a TIFF, it is that of the page whose directory begins at `directory`, None for the first page.

    EXIF comes first, then XMP (`tiff:Orientation`, as an attribute or an element). In a JPEG, PNG or WebP, both are
    blocks of the file, in a PNG also a text ("Raw profile type exif"); in a TIFF they are tags. Damaged metadata do not
    make an image bad: its pixels decide. The headers of other formats say it outside both; see `readers`.
    """
    with suppress(*_DAMAGED):
        if is_jpeg(data):
            return _of(_jpeg_metadata(data))
        if is_png(data):
            return _of(_png_metadata(data))
        if is_webp(data):
            return _of(_webp_metadata(data))
        if is_tiff(data):
            return _of(_tiff_metadata(data, directory), directory)
    return 1


def info_orientation(info: Mapping[Any, Any]) -> int:
    """The orientation that `PIL.Image.Image.info` tells, 1 to 8; 1 if it is absent or unreadable."""
    exif, xmp = info.get("exif"), info.get("XML:com.adobe.xmp") or info.get("xmp")
    with suppress(*_DAMAGED):
        if exif is None and isinstance(profile := info.get("Raw profile type exif"), str):
            exif = _raw_profile(profile)
        xmp = xmp.encode() if isinstance(xmp, str) else xmp
        return _of(_Metadata(exif if isinstance(exif, bytes) else None, xmp if isinstance(xmp, bytes) else None))
    return 1


def tiff_declares_alpha(data: bytes) -> bool:
    """Whether a TIFF says that its extra channel is alpha (TIFF 6.0, section 18, ExtraSamples)."""
    order = _byte_order(data)
    return any(tag == _EXTRA and _first(kind, values, order) in (1, 2) for tag, kind, values in _directory(data))


def _of(metadata: _Metadata, directory: int | None = None) -> int:
    value = None if metadata.exif is None else _exif_orientation(metadata.exif, directory)
    if value is None and metadata.xmp and (match := _XMP_ORIENTATION.search(metadata.xmp)):
        value = int(match[1])
    return int(value) if value is not None and value in range(1, 9) else 1


def _exif_orientation(block: bytes, directory: int | None = None) -> float | None:
    """The value of the orientation tag, 0 where it holds no number; None if there is no such tag."""
    while block.startswith(_EXIF_PREFIX):
        block = block[len(_EXIF_PREFIX) :]
    found, order = None, _byte_order(block)
    for tag, kind, values in _directory(block, directory):
        if tag == _ORIENTATION:
            found = _first(kind, values, order) or 0
    return found


def _byte_order(block: bytes) -> str:
    return "<" if block[:2] == b"II" else ">"


def _directory(block: bytes, start: int | None = None) -> Iterator[tuple[int, int, bytes]]:
    """Tag, type and data of each entry in a directory of a TIFF (TIFF 6.0, section 2), each tag once.

    The directory begins at `start`; None is the first.

    Of a damaged directory, what Pillow 13 finds: entries of impossible size are passed over, and data that end early
    end the directory.
    """
    if block[:4] not in _TIFFS:
        return
    order, big = _byte_order(block), block[:4] in _BIG_TIFFS
    count, entry, pointer, inline = ("Q", "HHQ8s", "Q", 8) if big else ("H", "HHI4s", "I", 4)
    with suppress(struct.error):  # a count or an offset points beyond the data
        if start is None:
            (start,) = struct.unpack_from(order + pointer, block, 8 if big else 4)
        (entries,) = struct.unpack_from(order + count, block, start)
        seen, left = set(), len(block)
        first, size = start + struct.calcsize(order + count), struct.calcsize(order + entry)
        for at in range(first, min(first + size * entries, len(block)), size):
            tag, kind, length, values = struct.unpack_from(order + entry, block, at)
            if tag in seen or (kind not in _BYTES and kind not in _NUMBERS):
                continue
            nbytes = length * (1 if kind in _BYTES else struct.calcsize("=" + _NUMBERS[kind]))
            if nbytes > inline:
                left -= nbytes
                if left < 0:
                    continue
                (begin,) = struct.unpack(order + pointer, values)
                if begin + nbytes > len(block):
                    return
                values = block[begin : begin + nbytes]
            if nbytes:
                seen.add(tag)
                yield tag, kind, values[:nbytes]


def _first(kind: int, values: bytes, order: str) -> float | None:
    """The first number of an entry; None if it holds no number."""
    if kind not in _NUMBERS:
        return None
    number, *others = struct.unpack_from(order + _NUMBERS[kind], values)
    if others:
        return number / others[0] if others[0] else None
    return number  # type: ignore[no-any-return]  # the format says that it is a number


def _jpeg_metadata(data: bytes) -> _Metadata:
    exif: bytes | None = None
    xmp: bytes | None = None
    at = 2
    while at + 1 < len(data):
        if data[at] != 0xFF:  # bytes between segments
            at = data.find(b"\xff", at)
            if at < 0:
                break
            continue
        marker = data[at + 1]
        if marker in _END_OF_HEADER:
            break
        if marker == 0xFF:  # a fill byte
            at += 1
        elif not marker or marker in _NO_LENGTH:
            at += 2
        else:
            if at + 4 > len(data):
                break
            end = at + 2 + max(2, data[at + 2] << 8 | data[at + 3])
            if marker == 0xE1:
                if data.startswith(_EXIF_PREFIX, at + 4):  # a long block continues in the next segment
                    exif = (exif or b"") + data[at + 4 + len(_EXIF_PREFIX) : end]
                elif data.startswith(_XMP_PREFIX, at + 4):
                    xmp = data[at + 4 + len(_XMP_PREFIX) : end]
            at = end
    return _Metadata(exif, xmp)


def _png_metadata(data: bytes) -> _Metadata:
    """EXIF and XMP of a PNG; of several blocks of one kind the last, which may lie behind the pixels."""
    found: dict[str, bytes] = {}
    profile: str | None = None
    at, animated, decoded = 8, False, False
    with suppress(struct.error):  # the data end within a chunk
        while at < len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            begin, end = at + 8, at + 8 + length
            at = end + 4
            if kind == b"IEND" or (kind == b"fcTL" and animated and decoded):  # the next frame begins
                break
            animated |= kind == b"acTL"
            decoded |= kind == b"IDAT"
            if kind == b"eXIf":
                found["exif"] = data[begin:end]
            elif kind in (b"tEXt", b"zTXt", b"iTXt") and (
                data.startswith((b"Raw profile type exif\0", b"exif\0", b"XML:com.adobe.xmp\0"), begin)
            ):
                name, _, rest = data[begin:end].partition(b"\0")
                text = _png_text(kind, rest)
                if text is None:
                    continue
                if name == b"XML:com.adobe.xmp":
                    found["xmp"] = text
                elif name == b"exif" and kind == b"tEXt":
                    found["exif"] = text
                elif name == b"Raw profile type exif":
                    profile = text.decode("latin-1")
    if "exif" not in found and profile is not None:
        with suppress(ValueError):
            found["exif"] = _raw_profile(profile)
    return _Metadata(found.get("exif"), found.get("xmp"))


def _png_text(kind: bytes, rest: bytes) -> bytes | None:
    """The text of a chunk after its keyword; None if it cannot be read (PNG 3, section 11.3.3)."""
    if kind == b"tEXt":
        return rest
    if kind == b"zTXt":
        return _inflated(rest[1:]) if rest[:1] == b"\0" else None
    compressed, method, (*_, text) = rest[:1], rest[1:2], rest[2:].split(b"\0", 2)
    if compressed == b"\0":
        return text
    return _inflated(text) if method == b"\0" else None


def _inflated(data: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(data, _MAX_TEXT)
    except zlib.error:
        return None


def _raw_profile(text: str) -> bytes:
    """The bytes of a "Raw profile" as ImageMagick writes it: three lines, then hexadecimal digits."""
    return bytes.fromhex("".join(text.split("\n")[3:]))


def _webp_metadata(data: bytes) -> _Metadata:
    """EXIF and XMP of a WebP, where its header announces them (WebP container, section 2.7)."""
    if data[12:16] != b"VP8X":
        return _Metadata()
    flags = data[20]
    wanted = {b"EXIF": flags & 0x08, b"XMP ": flags & 0x04}
    found: dict[bytes, bytes] = {}
    at = 12
    with suppress(struct.error):
        while at < len(data):
            kind, length = struct.unpack_from("<4sI", data, at)
            if wanted.get(kind) and kind not in found:
                found[kind] = data[at + 8 : at + 8 + length]
            at += 8 + length + length % 2
    return _Metadata(found.get(b"EXIF"), found.get(b"XMP "))


def _tiff_metadata(data: bytes, directory: int | None = None) -> _Metadata:
    xmp = None
    for tag, kind, values in _directory(data, directory):
        if tag == _XMP and kind in (1, 7):
            xmp = values
    return _Metadata(data, xmp)
