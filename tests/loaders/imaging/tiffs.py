"""TIFFs of any kind of pixels, with the bytes that the test gives."""

from __future__ import annotations

import struct
from collections.abc import Sequence

_KINDS = {"H": 3, "I": 4, "Q": 16}


def write_tiff(
    width: int,
    height: int,
    strips: Sequence[bytes],
    *,
    photometric: int,
    bits: Sequence[int] = (8,),
    extra: Sequence[int] = (),
    palette: Sequence[int] = (),
    planar: int = 1,
    fill_order: int = 1,
    orientation: int = 1,
    order: str = "<",
    big: bool = False,
    pages: int = 1,
    compression: int = 1,
    strip_rows: int | None = None,
) -> bytes:
    """A TIFF, or a BigTIFF if `big`, whose pages have the same pixels; the strips are what the compression says."""
    offset = "Q" if big else "I"
    begin = struct.pack(order + "HHHQ", 43, 8, 0, 16) if big else struct.pack(order + "HI", 42, 8)
    tags = {
        256: ("H", [width]),
        257: ("H", [height]),
        258: ("H", list(bits)),
        259: ("H", [compression]),
        262: ("H", [photometric]),
        266: ("H", [fill_order]),
        273: (offset, [0] * len(strips)),
        274: ("H", [orientation]),
        277: ("H", [len(bits)]),
        278: ("H", [strip_rows or height]),
        279: (offset, list(map(len, strips))),
        284: ("H", [planar]),
        320: ("H", list(palette)),
        338: ("H", list(extra)),
    }
    tags = {tag: values for tag, values in tags.items() if values[1]}
    inline, size = (8, 20) if big else (4, 12)
    behind = {tag: struct.calcsize(f"={len(values)}{kind}") for tag, (kind, values) in tags.items()}
    behind = {tag: nbytes for tag, nbytes in behind.items() if nbytes > inline}
    directory = struct.calcsize("=Q" if big else "=H") + size * len(tags) + struct.calcsize("=" + offset)
    data = (b"II" if order == "<" else b"MM") + begin
    for page in range(pages):
        at = len(data) + directory
        places = {}
        for tag, nbytes in behind.items():
            places[tag] = at
            at += nbytes
        starts = []
        for strip in strips:
            starts.append(at)
            at += len(strip)
        tags[273] = (offset, starts)
        data += struct.pack(order + ("Q" if big else "H"), len(tags))
        for tag, (kind, values) in sorted(tags.items()):
            packed = struct.pack(f"{order}{len(values)}{kind}", *values)
            where = struct.pack(order + offset, places[tag]) if tag in places else packed.ljust(inline, b"\0")
            data += struct.pack(f"{order}HH{offset}", tag, _KINDS[kind], len(values)) + where
        data += struct.pack(order + offset, at if page < pages - 1 else 0)
        data += b"".join(struct.pack(f"{order}{len(tags[tag][1])}{tags[tag][0]}", *tags[tag][1]) for tag in behind)
        data += b"".join(strips)
    return data
