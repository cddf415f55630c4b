from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from PIL import Image, features

from patchnpack.loaders.imaging.exif import info_orientation, orientation

KINDS = ["JPEG", "PNG", pytest.param("WEBP", marks=pytest.mark.skipif(not features.check("webp"), reason="no WebP"))]


def tiff_header(value: int, order: str = "<", kind: int = 3, before: int = 0) -> bytes:
    """A TIFF header whose first directory holds `before` other entries, then the orientation."""
    start = b"II*\0" if order == "<" else b"MM\0*"
    entries = [struct.pack(order + "HHII", 0x0100 + i, 4, 1, 7) for i in range(before)]
    code = {3: "H2x", 4: "I", 6: "b3x", 8: "h2x", 9: "i"}[kind]
    entries.append(struct.pack(order + "HHI" + code, 0x0112, kind, 1, value))
    return start + struct.pack(order + "IH", 8, len(entries)) + b"".join(entries) + struct.pack(order + "I", 0)


def jpeg(*segments: bytes) -> bytes:
    return b"\xff\xd8" + b"".join(segments) + b"\xff\xda\0\2"


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", range(1, 9))
def test_orientation_written_by_pil_is_found(
    value: int, kind: str, draw_image: Callable[..., Image.Image], encode_image: Callable[..., bytes]
) -> None:
    exif = Image.Exif()
    exif[0x010F] = "a maker"
    exif[0x0112] = value
    data = encode_image(draw_image(9, 7), kind, exif=exif)
    assert orientation(data) == value == Image.open(io.BytesIO(data)).getexif()[0x0112]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("kind", [3, 4, 6, 8, 9])
def test_both_byte_orders_and_all_integer_types_are_read(order: str, kind: int) -> None:
    block = tiff_header(6, order, kind, before=3)
    assert orientation(jpeg(segment(0xE0, b"JFIF\0"), segment(0xE1, b"Exif\0\0" + block))) == 6


def test_orientation_is_found_after_long_segments() -> None:
    before = [segment(0xE2, bytes(65000)) for _ in range(5)]
    assert orientation(jpeg(*before, b"\xff\xff\xff", segment(0xE1, b"Exif\0\0" + tiff_header(8))[1:])) == 8


def test_other_segments_and_the_scan_are_not_read_as_exif() -> None:
    exif = segment(0xE1, b"Exif\0\0" + tiff_header(6))
    assert orientation(jpeg(segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + exif))) == 1
    assert orientation(jpeg() + exif) == 1


@pytest.mark.parametrize("value", [0, 9, 255])
def test_value_outside_one_to_eight_means_upright(value: int) -> None:
    assert orientation(jpeg(segment(0xE1, b"Exif\0\0" + tiff_header(value)))) == 1


def test_png_block_after_the_pixels_is_found() -> None:
    chunks = [(b"IHDR", bytes(13)), (b"IDAT", bytes(70)), (b"eXIf", tiff_header(5)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I4s", len(d), k) + d + bytes(4) for k, d in chunks)
    assert orientation(data) == 5


@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_webp_block_is_found_with_and_without_the_jpeg_prefix(prefix: bytes) -> None:
    chunks = [(b"VP8X", b"\x08" + bytes(9)), (b"VP8 ", bytes(7)), (b"EXIF", prefix + tiff_header(7))]
    body = b"WEBP" + b"".join(struct.pack("<4sI", k, len(d)) + d + bytes(len(d) % 2) for k, d in chunks)
    assert orientation(b"RIFF" + struct.pack("<I", len(body)) + body) == 7


def test_truncation_never_raises() -> None:
    whole = jpeg(segment(0xE0, b"JFIF\0"), segment(0xE1, b"Exif\0\0" + tiff_header(6, before=2)))
    assert {orientation(whole[:n]) for n in range(len(whole))} == {1, 6}
    assert orientation(b"") == orientation(b"\xff\xd8\xff") == orientation(b"GIF89a") == 1


def test_directory_with_entries_beyond_the_end_means_upright() -> None:
    block = bytearray(tiff_header(6, before=2))
    block[8:10] = struct.pack("<H", 60000)
    block[-16:-14] = b"\0\0"  # the orientation's tag
    assert orientation(jpeg(segment(0xE1, b"Exif\0\0" + bytes(block)))) == 1


def test_block_alone_is_read_and_truncation_never_raises() -> None:
    for block in (tiff_header(6, before=2), b"Exif\0\0" + tiff_header(6, ">", before=2)):
        assert info_orientation({"exif": block}) == 6
        assert {info_orientation({"exif": block[:cut]}) for cut in range(len(block))} <= {1, 6}
    assert info_orientation({"exif": b""}) == info_orientation({"exif": b"Exif\0\0"}) == info_orientation({}) == 1


@pytest.mark.parametrize("order", ["<", ">"])
def test_big_tiff_is_read_like_any_tiff(order: str) -> None:
    start = b"II+\0" if order == "<" else b"MM\0+"
    entry = struct.pack(order + "HHQH6x", 0x0112, 3, 1, 6)
    data = start + struct.pack(order + "HHQQ", 8, 0, 16, 1) + entry + bytes(8)
    assert orientation(data) == 6
    assert {orientation(data[:cut]) for cut in range(len(data))} <= {1, 6}


def test_png_text_is_decompressed_to_a_limit() -> None:
    bomb = zlib.compress(b"\n\n\n" + b"00" * (64 << 20))
    text = b"Raw profile type exif\0\0" + bomb
    chunks = [(b"IHDR", bytes(13)), (b"zTXt", text), (b"eXIf", tiff_header(5)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I4s", len(d), k) + d + bytes(4) for k, d in chunks)
    tracemalloc.start()
    assert orientation(data) == 5
    assert tracemalloc.get_traced_memory()[1] < 16 << 20
    tracemalloc.stop()
