"""EXIF orientation and TIFF tags, parsed here because PIL's parser issues warnings for damaged blocks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress

from patchnpack.loaders.imaging.formats import is_jpeg, is_png, is_webp

_ORIENTATION = 0x0112
_INTEGERS = {1: "B", 3: "H", 4: "I"}  # TIFF field types
_PREFIX = b"Exif\x00\x00"
_NO_LENGTH = {0x01, *range(0xD0, 0xD8)}  # JPEG markers without a segment
_END_OF_HEADER = {0xD9, 0xDA}  # JPEG markers: end of image, start of scan


def orientation(data: bytes) -> int:
    """The EXIF orientation of an encoded JPEG, PNG or WebP, 1 to 8; 1 if it is absent or unreadable.

    A damaged EXIF block does not make an image bad: its pixels decide.
    """
    try:
        for block in _blocks(data):
            return _from_tiff(block)
    except struct.error:
        pass  # a length or an offset points beyond the data
    return 1


def block_orientation(block: bytes) -> int:
    """The orientation in one EXIF block, such as PIL keeps in `image.info["exif"]`; 1 if it is absent or unreadable."""
    try:
        return _from_tiff(block.removeprefix(_PREFIX))
    except struct.error:
        return 1


def tiff_numbers(data: bytes) -> dict[int, int]:
    """The integer tags of a TIFF file's first directory, with the first value of each.

    Of a damaged directory, the tags before the damage.
    """
    tags: dict[int, int] = {}
    with suppress(struct.error):  # an offset points beyond the data
        tags.update((tag, value) for tag, _, value in _numbers(data))
    return tags


def _blocks(data: bytes) -> Iterator[bytes]:
    """The EXIF blocks of an image, each a TIFF header with its directories."""
    if is_jpeg(data):
        at = 2
        while at < len(data):
            if data[at] != 0xFF:
                return
            marker = data[at + 1] if at + 1 < len(data) else 0xD9
            if marker in _END_OF_HEADER:
                return
            if marker == 0xFF:  # a fill byte
                at += 1
            elif marker in _NO_LENGTH:
                at += 2
            else:
                (length,) = struct.unpack_from(">H", data, at + 2)
                if marker == 0xE1 and data.startswith(_PREFIX, at + 4):
                    yield data[at + 4 + len(_PREFIX) : at + 2 + length]
                at += 2 + length
    elif is_png(data):
        at = 8
        while at < len(data):
            length, kind = struct.unpack_from(">I4s", data, at)
            if kind == b"eXIf":
                yield data[at + 8 : at + 8 + length].removeprefix(_PREFIX)
            at += 12 + length
    elif is_webp(data):
        at = 12
        while at < len(data):
            kind, length = struct.unpack_from("<4sI", data, at)
            if kind == b"EXIF":
                yield data[at + 8 : at + 8 + length].removeprefix(_PREFIX)
            at += 8 + length + length % 2


def _from_tiff(block: bytes) -> int:
    value = next((value for tag, count, value in _numbers(block) if tag == _ORIENTATION and count == 1), 1)
    return value if 1 <= value <= 8 else 1


def _numbers(block: bytes) -> Iterator[tuple[int, int, int]]:
    """Tag, count and first value of each integer entry in the first directory of a TIFF (TIFF 6.0, section 2)."""
    order = {b"II": "<", b"MM": ">"}.get(block[:2])
    if order is None:
        return
    (directory,) = struct.unpack_from(order + "I", block, 4)
    (entries,) = struct.unpack_from(order + "H", block, directory)
    for entry in range(directory + 2, directory + 2 + 12 * entries, 12):
        tag, kind, count = struct.unpack_from(order + "HHI", block, entry)
        if kind in _INTEGERS and count:
            number, at = order + _INTEGERS[kind], entry + 8
            if count * struct.calcsize(number) > 4:
                (at,) = struct.unpack_from(order + "I", block, at)
            if at + struct.calcsize(number) <= len(block):
                yield tag, count, struct.unpack_from(number, block, at)[0]
