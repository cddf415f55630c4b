"""Boxes (ISO/IEC 14496-12): what JPEG 2000, JPEG XL, AVIF and HEIF files consist of."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple


class Box(NamedTuple):
    """A box: its kind, and where its payload begins and ends."""

    kind: bytes
    begin: int
    end: int


def boxes(data: bytes, at: int = 0, end: int | None = None) -> Iterator[Box]:
    """The boxes in a range of bytes. A box that ends behind the range, as in a file cut short, ends with it.

    Raises:
        ValueError, struct.error: a box is smaller than its own header.
    """
    end = len(data) if end is None else min(end, len(data))
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        begin = at + 8
        if size == 1:
            (size,) = struct.unpack_from(">Q", data, begin)
            begin += 8
        following = end if size == 0 else at + size
        if following < begin:
            raise ValueError(f"a box {kind!r} of {size} bytes is smaller than its header")
        yield Box(kind, begin, min(following, end))
        at = following


def sample_count(data: bytes) -> int:
    """The largest number of samples of a track, by its table of sizes (section 8.7.3); 0 without one.

    Raises:
        ValueError, struct.error: the data are damaged.
    """
    found = [Box(b"", 0, len(data))]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsz"):
        found = [box for outer in found for box in boxes(data, outer.begin, outer.end) if box.kind == kind]
    return max((int(struct.unpack_from(">I", data, box.begin + 8)[0]) for box in found), default=0)
