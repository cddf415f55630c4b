"""Images of fewer than 8 bits, in CMYK, in YCbCr or of rare compressions, and files that are no images."""

from __future__ import annotations

import logging
import struct
import zlib
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.header import UnsupportedImage, read_header
from patchnpack.loaders.imaging.readers.codecs import codec
from patchnpack.loaders.imaging.warnings import MESSAGE
from tests.images import draw_image, encode_image
from tests.loaders.imaging.tiffs import write_tiff

WIDTH, HEIGHT = 40, 24
GREY = np.asarray(draw_image(WIDTH, HEIGHT).convert("L"))
COLORS = np.asarray(draw_image(WIDTH, HEIGHT))


def loaded(data: bytes, mode: Any = "L", **options: Any) -> np.ndarray:
    header = read_header(data)
    pixels = decode(data, header, (header.width, header.height), mode=mode, **options)
    return pixels[..., 0] if mode == "L" else pixels


def as_cmyk(jp2: bytes) -> bytes:
    """The JPEG 2000 with CMYK as its enumerated colour space."""
    at = jp2.index(b"colr") + 4
    assert jp2[at] == 1
    return jp2[: at + 3] + struct.pack(">I", 12) + jp2[at + 7 :]


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
@pytest.mark.parametrize("format", ["jp2", "j2k"])
def test_jpeg_2000_of_few_bits_is_as_bright_as_in_pil(bits: int, format: str) -> None:
    stored = GREY >> (8 - bits)
    data = bytes(imagecodecs.jpeg2k_encode(stored, codecformat=format, bitspersample=bits, reversible=True))
    assert np.array_equal(loaded(data), stored << (8 - bits))  # PIL shifts the samples up


@pytest.mark.parametrize("bits", [5, 8])
def test_jpeg_2000_of_signed_samples_is_offset_as_in_pil(bits: int) -> None:
    data = bytearray(
        imagecodecs.jpeg2k_encode(GREY >> (8 - bits), codecformat="j2k", bitspersample=bits, reversible=True)
    )
    at = data.index(b"\xff\x51") + 40
    assert data[at] == bits - 1
    data[at] |= 0x80  # the decoder then leaves out its offset of half the range
    assert np.array_equal(loaded(bytes(data)), GREY >> (8 - bits) << (8 - bits))


def test_jpeg_2000_in_cmyk_has_the_colours_of_pil() -> None:
    inks = np.asarray(draw_image(WIDTH, HEIGHT).convert("CMYK"))
    plain = bytes(imagecodecs.jpeg2k_encode(inks, codecformat="jp2", reversible=True, mct=False))
    assert np.array_equal(loaded(as_cmyk(plain), "RGB"), np.asarray(Image.fromarray(inks, "CMYK").convert("RGB")))
    assert np.array_equal(loaded(plain, "RGBA"), inks)  # four channels of another colour space stay RGBA


@pytest.mark.parametrize("bits", [1, 2, 4, 7])
@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_xl_and_lossless_jpeg_of_few_bits_use_the_whole_range(bits: int, channels: int) -> None:
    stored = (GREY if channels == 1 else COLORS) >> (8 - bits)
    expected = np.rint(stored * (255 / ((1 << bits) - 1))).astype(np.uint8)
    mode = "L" if channels == 1 else "RGB"
    jxl = bytes(imagecodecs.jpegxl_encode(stored, lossless=True, bitspersample=bits))
    assert np.array_equal(loaded(jxl, mode), expected)
    if bits > 1:  # a JPEG has at least two
        jpeg = bytes(imagecodecs.jpeg8_encode(stored, lossless=True, bitspersample=bits))
        assert np.array_equal(loaded(jpeg, mode), expected)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("order", ["<", ">"])
def test_uncompressed_ycbcr_tiff_equals_pils_conversion_whatever_pil_was_built_with(
    order: str, orientation: int
) -> None:
    image = draw_image(WIDTH, HEIGHT).convert("YCbCr")
    rows = [image.tobytes()]
    data = write_tiff(WIDTH, HEIGHT, rows, order=order, photometric=6, bits=(8, 8, 8), orientation=orientation)
    upright = image.transpose(Image.Transpose.ROTATE_270) if orientation == 6 else image
    for mode in ("RGB", "L"):
        expected = np.asarray(upright.convert(mode))
        assert np.array_equal(loaded(data, mode), expected)


@pytest.mark.parametrize(("compression", "name"), [(33003, "JPEG 2000"), (34712, "JPEG 2000"), (50002, "JPEG XL")])
def test_tiff_of_a_compression_that_nothing_reads_is_refused_by_its_header(compression: int, name: str) -> None:
    data = write_tiff(WIDTH, HEIGHT, [COLORS.tobytes()], photometric=2, bits=(8, 8, 8), compression=compression)
    with pytest.raises(UnsupportedImage, match=rf"compression {compression} \({name}\), which is not read unless dec"):
        read_header(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty: it has 0 bytes; copy or download it again"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "it is a Git LFS pointer, not the image itself; run `git lfs pull` in its repository",
        ),
    ],
)
def test_file_without_an_image_says_what_it_is(data: bytes, says: str) -> None:
    with pytest.raises(BadImage, match=says):
        read_header(data)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.ERROR])
def test_messages_of_decoders_count_at_every_level_of_the_root_logger(level: int) -> None:
    plain = encode_image(draw_image(WIDTH, HEIGHT), "PNG")
    time = b"\0\0\0\4tIMEaaaa" + struct.pack(">I", zlib.crc32(b"tIMEaaaa") ^ 1)
    data = plain[:33] + time + plain[33:]
    codec("png_decode")
    root, own = logging.getLogger(), logging.getLogger("imagecodecs")
    before, kinds = root.level, list[str]()
    root.setLevel(level)
    try:
        pixels = loaded(data, "RGB", warn=kinds.append)
        assert not own.filter(own.makeRecord("imagecodecs", logging.INFO, "", 0, "", (), None)) or level < logging.INFO
    finally:
        root.setLevel(before)
    assert kinds == [MESSAGE]
    assert np.array_equal(pixels, COLORS)
