"""Images that say in every possible way how they were held: by EXIF of any type, XMP or a raw profile."""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from typing import Any

from PIL import Image

ORIENTATION, XMP_TAG = 0x0112, 700
# TIFF field types and the formats of their values; those of bytes and text hold no number for PIL.
KINDS = {1: "B", 2: "c", 3: "H", 4: "I", 5: "II", 6: "b", 7: "B", 8: "h", 9: "i", 10: "ii", 11: "f", 12: "d", 13: "I"}
Entry = tuple[int, int, int, bytes]  # tag, type, count, data


def value_of(kind: int, value: int, order: str) -> bytes:
    """One value of a TIFF field type."""
    code = KINDS[kind]
    if code == "c":
        return str(value).encode()[:1]
    return struct.pack(order + code, *((value, 1) if len(code) > 1 else (value,)))


def tiff_block(entries: list[Entry], order: str = "<", *, pixels: bytes = b"") -> bytes:
    """A TIFF header with one directory, whose long values follow it, and then `pixels` (tag 273 points there)."""
    directory = 8 + 2 + 12 * len(entries) + 4
    offsets = list(itertools.accumulate((len(e[3]) if len(e[3]) > 4 else 0 for e in entries), initial=directory))
    body = b""
    for (tag, kind, count, data), at in zip(entries, offsets, strict=False):
        data = struct.pack(order + "I", offsets[-1]) if tag == 273 else data
        inline = data.ljust(4, b"\0") if len(data) <= 4 else struct.pack(order + "I", at)
        body += struct.pack(order + "HHI", tag, kind, count) + inline
    start = b"II*\0" if order == "<" else b"MM\0*"
    long = b"".join(e[3] for e in entries if len(e[3]) > 4)
    return start + struct.pack(order + "IH", 8, len(entries)) + body + bytes(4) + long + pixels


def exif_blocks() -> Iterator[tuple[str, bytes]]:
    """EXIF blocks with a name: each type, byte order and value, and what stands around them."""
    for order, kind, value in itertools.product("<>", KINDS, (0, 1, 2, 3, 4, 5, 6, 7, 8, 9)):
        entry = (ORIENTATION, kind, 1, value_of(kind, value, order))
        yield f"{order}{KINDS[kind]}{kind}={value}", tiff_block([entry], order)
    six, eight = struct.pack("<H", 6), struct.pack("<H", 8)
    maker = (0x010F, 2, 9, b"a maker.\0")
    yield "after a maker", tiff_block([maker, (ORIENTATION, 3, 1, six)])
    yield "two values", tiff_block([(ORIENTATION, 3, 2, six + eight)])
    yield "three values", tiff_block([(ORIENTATION, 3, 3, six + eight + eight)])
    yield "twice", tiff_block([(ORIENTATION, 3, 1, six), (ORIENTATION, 3, 1, eight)])
    yield "no value", tiff_block([(ORIENTATION, 3, 0, b"")])
    yield "negative", tiff_block([(ORIENTATION, 8, 1, struct.pack("<h", -6))])
    yield "unknown type", tiff_block([(ORIENTATION, 99, 1, six)])
    yield "no orientation", tiff_block([maker])
    yield "half", tiff_block([(ORIENTATION, 5, 1, struct.pack("<II", 13, 2))])
    yield "by zero", tiff_block([(ORIENTATION, 5, 1, struct.pack("<II", 6, 0))])
    yield "prefixed", b"Exif\0\0" + tiff_block([(ORIENTATION, 3, 1, six)])
    yield "maker beyond the end", tiff_block([(0x010F, 2, 90, b"a maker.\0"), (ORIENTATION, 3, 1, six)])
    yield "swapped header", b"II\0*" + tiff_block([(ORIENTATION, 3, 1, six)])[4:]


def xmp_packets() -> Iterator[tuple[str, bytes]]:
    """XMP packets with a name: the orientation as an attribute, as an element, and in neither form."""
    rdf = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF><rdf:Description {}>{}</rdf:Description></rdf:RDF></x:xmpmeta>'
    for value in (0, 1, 3, 5, 6, 8, 9):
        yield f"attribute={value}", rdf.format(f'tiff:Orientation="{value}"', "").encode()
        yield f"element={value}", rdf.format("", f"<tiff:Orientation>{value}</tiff:Orientation>").encode()
    yield "both", rdf.format('tiff:Orientation="3"', "<tiff:Orientation>6</tiff:Orientation>").encode()
    yield "neither", rdf.format('tiff:Make="a"', "").encode()


def metadata() -> Iterator[tuple[str, bytes | None, bytes | None]]:
    """All that is compared: a name, an EXIF block and an XMP packet."""
    for name, block in exif_blocks():
        yield f"exif {name}", block, None
    for name, packet in xmp_packets():
        yield f"xmp {name}", None, packet
    six = next(packet for name, packet in xmp_packets() if name == "attribute=6")
    for name, block in exif_blocks():
        if name in ("<H3=8", "<H3=0", "<B1=8", "<c2=8", "no orientation", "no value", "unknown type"):
            yield f"exif {name} and xmp 6", block, six


def in_jpeg(jpeg: bytes, exif: bytes | None, xmp: bytes | None) -> bytes:
    """A JPEG with these blocks right after its start."""
    segments = b""
    for prefix, block in ((b"Exif\0\0", exif), (b"http://ns.adobe.com/xap/1.0/\0", xmp)):
        if block is not None:
            payload = prefix + block
            segments += b"\xff\xe1" + struct.pack(">H", len(payload) + 2) + payload
    return jpeg[:2] + segments + jpeg[2:]


def png_chunk(kind: bytes, payload: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))


def raw_profile(block: bytes) -> bytes:
    """A text as ImageMagick writes EXIF into a PNG."""
    digits = block.hex()
    lines = [digits[at : at + 72] for at in range(0, len(digits), 72)]
    return "\n".join(["", "exif", f"{len(block):8d}", *lines, ""]).encode()


def png_metadata(kind: str, exif: bytes | None, xmp: bytes | None) -> bytes:
    """The chunks that hold these blocks, in one of the ways: "chunk", "tEXt", "zTXt" or "iTXt"."""
    chunks = b""
    if exif is not None:
        text = raw_profile(exif)
        chunks += {
            "chunk": lambda: png_chunk(b"eXIf", exif),
            "tEXt": lambda: png_chunk(b"tEXt", b"Raw profile type exif\0" + text),
            "zTXt": lambda: png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)),
            "iTXt": lambda: png_chunk(b"iTXt", b"Raw profile type exif\0\1\0\0\0" + zlib.compress(text)),
        }[kind]()
    if xmp is not None:
        name = b"XML:com.adobe.xmp\0"
        chunks += {
            "chunk": lambda: png_chunk(b"iTXt", name + b"\0\0\0\0" + xmp),
            "tEXt": lambda: png_chunk(b"tEXt", name + xmp),
            "zTXt": lambda: png_chunk(b"zTXt", name + b"\0" + zlib.compress(xmp)),
            "iTXt": lambda: png_chunk(b"iTXt", name + b"\1\0\0\0" + zlib.compress(xmp)),
        }[kind]()
    return chunks


def in_png(png: bytes, chunks: bytes, *, after: bool = False) -> bytes:
    """A PNG with these chunks after its header, or after its pixels."""
    at = len(png) - 12 if after else 33
    return png[:at] + chunks + png[at:]


def in_webp(webp: bytes, exif: bytes | None, xmp: bytes | None, width: int, height: int) -> bytes:
    """An extended WebP of the pixels of a simple one."""
    flags = (8 if exif is not None else 0) | (4 if xmp is not None else 0)
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    chunks = [(b"VP8X", bytes([flags, 0, 0, 0]) + size)]
    body = b"".join(_riff(kind, payload) for kind, payload in chunks) + webp[12:]
    for kind, block in ((b"EXIF", exif), (b"XMP ", xmp)):
        body += _riff(kind, block) if block is not None else b""
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


def _riff(kind: bytes, payload: bytes) -> bytes:
    return struct.pack("<4sI", kind, len(payload)) + payload + bytes(len(payload) % 2)


def in_tiff(image: Image.Image, kind: int | None, value: int, xmp: bytes | None, order: str = "<") -> bytes:
    """An uncompressed TIFF of an RGB image, with the orientation as a tag of this type, and XMP."""
    width, height = image.size

    def number(tag: int, value: int) -> Entry:
        return tag, 4, 1, struct.pack(order + "I", value)

    pixels = image.tobytes()
    entries: list[Entry] = [
        number(256, width),
        number(257, height),
        (258, 3, 3, struct.pack(order + "3H", 8, 8, 8)),
        number(259, 1),
        number(262, 2),
        number(273, 0),
        *([(ORIENTATION, kind, 1, value_of(kind, value, order))] if kind is not None else []),
        number(277, 3),
        number(278, height),
        number(279, len(pixels)),
        *([(XMP_TAG, 1, len(xmp), xmp)] if xmp is not None else []),
    ]
    return tiff_block(entries, order, pixels=pixels)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """An image, encoded by PIL."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
