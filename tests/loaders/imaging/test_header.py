"""Headers: which images are refused without decoding, and with which reason."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image, features

from patchnpack.loaders.errors import MAX_PIXELS, BadImage
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, read_header
from tests.images import resize_jpeg_header, write_png

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]

needs_webp = pytest.mark.skipif(not features.check("webp"), reason="this PIL was built without WebP")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "it is empty: it has 0 bytes"),
        (b"\xff\xd8", "ValueError"),
        (b"\xff\xd8\xff", "ValueError"),
        (b"no image at all", "begins with b'no image'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "only JPEG, PNG"),
        (b"P6 1 1 255 abc", "only JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n", "ValueError: the PNG begins with"),
        (b"GIF89a", "Error"),
        (b"BM", "Error"),
        (b"II*\0", "error: "),
        (b"II+\0", "error: "),
        (b"RIFF\x24\0\0\0WEBPVP8 ", "ValueError: the WebP"),
        (b"\0\0\0\x0cftypavif", "ValueError: the file has no image item"),
        (b"\0\0\0\x0cftypheic", "ValueError: the file has no image item"),
        (b"\xff\x0a", "ValueError: the JPEG XL ends in its header"),
        (b"\xff\x4f\xff\x51", "error: "),
    ],
)
def test_other_data_is_refused_with_its_first_bytes_or_the_decoders_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        read_header(data)


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_png_of_16_bits_is_refused(color: int) -> None:
    with pytest.raises(BadImage, match="16 bits per channel"):
        read_header(write_png(5, 4, bits=16, color=color))


@pytest.mark.parametrize(
    ("dtype", "reason"), [("uint16", "16 bits per channel"), ("float32", "32 bits per channel"), ("int32", "32 bits")]
)
def test_tiff_of_more_than_8_bits_is_refused(dtype: str, reason: str, encode_image: Encode) -> None:
    image = Image.fromarray(np.arange(20).reshape(4, 5).astype(dtype))
    with pytest.raises(BadImage, match=reason):
        read_header(encode_image(image, "TIFF"))


def test_tiff_in_a_colour_space_that_pil_cannot_convert_is_refused(encode_image: Encode) -> None:
    with pytest.raises(BadImage, match="PIL mode 'LAB'"):
        read_header(encode_image(Image.new("LAB", (4, 5)), "TIFF"))


def tiff(width: int, height: int, channels: int, bits: int, *, order: str = "<", orientation: int = 1) -> bytes:
    """A TIFF of black pixels with the given channels and bits."""
    each = struct.pack(f"{order}{channels}H", *[bits] * channels)
    pixels = bytes(width * height * channels * bits // 8)
    start = 8 + 2 + 12 * 10 + 4  # of the values that do not fit into the directory
    behind = each if len(each) > 4 else b""
    entries: list[tuple[int, int, int, Any]] = [(256, 4, 1, width), (257, 4, 1, height), (259, 3, 1, 1), (262, 3, 1, 1)]
    entries += [(258, 3, channels, start if behind else each), (273, 4, 1, start + len(behind))]
    entries += [(274, 3, 1, orientation), (277, 3, 1, channels)]
    entries += [(278, 4, 1, height), (279, 4, 1, len(pixels))]
    directory = b""
    for tag, kind, count, value in entries:
        if not isinstance(value, bytes):
            value = struct.pack(order + ("H" if kind == 3 and tag != 258 else "I"), value)
        directory += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return head + directory + bytes(4) + behind + pixels


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(
    ("channels", "bits", "reason"),
    [
        (8, 8, "8 channels; only up to 4"),
        (5, 16, "5 channels"),
        (2, 16, "16 bits"),
        (3, 32, "32 bits"),
        (1, 64, "64 bits"),
    ],
)
def test_tiff_that_pil_cannot_open_is_refused_with_its_size(
    channels: int, bits: int, reason: str, order: str, caplog: pytest.LogCaptureFixture
) -> None:
    for orientation in (1, 3, 6):
        with pytest.raises(UnsupportedImage, match=f"{reason}.* unless decode= is given") as caught:
            read_header(tiff(7, 4, channels, bits, order=order, orientation=orientation))
        assert caught.value.header[:5] == Header(*((4, 7) if orientation == 6 else (7, 4)), 1, 6)[:5]
    assert not caplog.records  # PIL would log an error for each


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL warns about damaged directories
def test_truncated_tiff_is_never_reported_with_a_wrong_size() -> None:
    whole = tiff(7, 4, 8, 16)
    for cut in range(8, 200):
        with pytest.raises(BadImage) as caught:
            read_header(whole[:cut])
        if isinstance(caught.value, UnsupportedImage):
            assert caught.value.header[:2] == (7, 4)


def test_too_many_pixels_are_refused_without_decoding(draw_image: Draw, encode_image: Encode) -> None:
    side = 14_000
    assert side * side > MAX_PIXELS
    jpeg = resize_jpeg_header(encode_image(draw_image(9, 9), "JPEG"), side, side)
    for data in (jpeg, write_png(side, side, rows=b"")):
        tracemalloc.start()
        with pytest.raises(
            BadImage, match=f"14000x14000 pixels; an image must have at least 1 and at most {MAX_PIXELS} pixels"
        ):
            read_header(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_large_image_below_the_limit_gives_no_warning() -> None:
    # PIL warns from 89 million pixels on; a warning is an error here.
    assert read_header(write_png(10_000, 10_000, rows=b"")) == Header(10_000, 10_000, 1, 2)


@needs_webp
def test_webp_that_is_too_large_is_refused(encode_image: Encode) -> None:
    data = bytearray(encode_image(Image.new("RGBA", (9, 9), (1, 2, 3, 4)), "WEBP", exif=b"Exif\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (16_382).to_bytes(3, "little") * 2
    with pytest.raises(BadImage):
        read_header(bytes(data))


def test_reason_of_a_bad_image_is_deterministic() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(BadImage) as caught:
            read_header(b"not an image")
        reasons.add(str(caught.value))
    assert len(reasons) == 1
