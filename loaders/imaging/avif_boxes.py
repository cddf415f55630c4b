"""The boxes of an AVIF that turn its image (ISO/IEC 23008-12, sections 6.5.10 and 6.5.12)."""

from __future__ import annotations

import struct
from collections.abc import Iterator

# Anticlockwise quarter turns, then a mirror (None, top to bottom, left to right): the EXIF orientation.
_ORIENTATIONS = {
    (0, None): 1,
    (1, None): 8,
    (2, None): 3,
    (3, None): 6,
    (0, 0): 4,
    (1, 0): 5,
    (2, 0): 2,
    (3, 0): 7,
    (0, 1): 2,
    (1, 1): 7,
    (2, 1): 4,
    (3, 1): 5,
}


def is_avif(data: bytes) -> bool:
    """Whether the data begin like an AVIF: one of its brands says so."""
    brands = data[8 : int.from_bytes(data[:4], "big")] if data[4:8] == b"ftyp" else b""
    return any(brands[at : at + 4] in (b"avif", b"avis") for at in range(0, min(len(brands), 256), 4))


def avif_orientation(data: bytes) -> int:
    """The orientation of the primary item, 1 to 8, numbered as in EXIF; its EXIF block does not count.

    Raises:
        struct.error, IndexError: the boxes end early.
    """
    meta = next((part for kind, part in _boxes(data) if kind == b"meta"), b"")
    boxes = dict(_boxes(meta[4:]))
    if not {b"pitm", b"iprp"} <= boxes.keys():
        return 1
    primary = int.from_bytes(boxes[b"pitm"][4 : 6 if boxes[b"pitm"][0] == 0 else 8], "big")
    properties = dict(_boxes(boxes[b"iprp"]))
    container = list(_boxes(properties.get(b"ipco", b"")))
    turns, mirror = 0, None
    for number in _associations(properties.get(b"ipma", b""), primary):
        kind, part = container[number - 1] if 0 < number <= len(container) else (b"", b"")
        if kind == b"irot":
            turns = part[0] & 3
        elif kind == b"imir":
            mirror = part[0] & 1
    return _ORIENTATIONS[turns, mirror]


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and contents of each box."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        end = at + size if size else len(data)
        if end < begin:
            return
        yield kind, data[begin:end]
        at = end


def _associations(ipma: bytes, item: int) -> list[int]:
    """Numbers of the properties of an item, from 1."""
    if len(ipma) < 8:
        return []
    wide_item, wide_number = ipma[0] > 0, ipma[3] & 1
    (entries,) = struct.unpack_from(">I", ipma, 4)
    at = 8
    for _ in range(entries):
        (found,) = struct.unpack_from(">I" if wide_item else ">H", ipma, at)
        at += 4 if wide_item else 2
        count, step = ipma[at], 2 if wide_number else 1
        at += 1
        if found == item:
            numbers = [int.from_bytes(ipma[at + step * i : at + step * (i + 1)], "big") for i in range(count)]
            return [number & (0x7FFF if wide_number else 0x7F) for number in numbers]
        at += count * step
    return []
