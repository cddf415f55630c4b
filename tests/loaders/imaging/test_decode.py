"""Decoding equals PIL for every format, orientation, size, crop and number of channels."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps, features

from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.header import Header, read_header
from tests.images import write_png

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]

needs_webp = pytest.mark.skipif(not features.check("webp"), reason="this PIL was built without WebP")
KINDS = ["JPEG", "PNG", pytest.param("WEBP", marks=needs_webp)]


def native(data: bytes, mode: str = "RGB") -> np.ndarray:
    header = read_header(data)
    return decode(data, header, (header.width, header.height), mode=mode)  # type: ignore[arg-type]


def by_pil(data: bytes, mode: str = "RGB") -> np.ndarray:
    """The image as PIL decodes it, (H, W, C)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


# Formats


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (16, 16), (33, 47)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {"subsampling": "4:4:4"}),
        ("RGB", {"subsampling": "4:2:2"}),
        ("RGB", {"subsampling": "4:2:0"}),
        ("RGB", {"progressive": True}),
        ("L", {}),
        ("CMYK", {}),
    ],
)
def test_native_jpeg_equals_pil(
    mode: str, options: dict[str, object], size: tuple[int, int], draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(*size, mode=mode), "JPEG", quality=90, **options)
    header = read_header(data)
    assert (header.width, header.height, header.orientation) == (*size, 1)
    assert header.direct == (mode != "CMYK")
    assert np.array_equal(native(data), by_pil(data))


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "P", "1"])
@pytest.mark.parametrize("size", [(1, 1), (33, 47)])
def test_native_png_equals_pil(mode: str, size: tuple[int, int], draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(*size, mode=mode), "PNG")
    assert np.array_equal(native(data), by_pil(data))


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 256, 8))])
def test_png_with_a_transparent_palette_keeps_its_colours(
    transparency: int | bytes, draw_image: Draw, encode_image: Encode
) -> None:
    image = draw_image(20, 30, mode="P")
    data = encode_image(image, "PNG", transparency=transparency)
    assert np.array_equal(native(data), np.asarray(image.convert("RGB")))
    assert np.array_equal(native(data, "RGBA")[..., 3], by_pil(data, "RGBA")[..., 3])
    assert native(data, "RGBA")[..., 3].min() == 0


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_png_of_few_bits_equals_pil(bits: int) -> None:
    rng = np.random.default_rng(bits)
    stride = -(-21 * bits // 8)
    data = write_png(21, 9, bits=bits, color=0, rows=b"".join(b"\0" + rng.bytes(stride) for _ in range(9)))
    assert np.array_equal(native(data), by_pil(data))


def test_interlaced_png_equals_pil(draw_image: Draw) -> None:
    # PIL cannot write Adam7, so the seven passes of 8x8 grey pixels are written here.
    pixels = np.asarray(draw_image(8, 8, mode="L"))
    rows = b"".join(
        b"\0" + line.tobytes()
        for x, y, dx, dy in (
            (0, 0, 8, 8),
            (4, 0, 8, 8),
            (0, 4, 4, 8),
            (2, 0, 4, 4),
            (0, 2, 2, 4),
            (1, 0, 2, 2),
            (0, 1, 1, 2),
        )
        for line in pixels[y::dy, x::dx]
    )
    data = bytearray(write_png(8, 8, color=0, rows=rows))
    data[28] = 1
    data[29:33] = struct.pack(">I", zlib.crc32(bytes(data[12:29])))
    assert np.array_equal(native(bytes(data), "L")[..., 0], pixels)


@needs_webp
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
@pytest.mark.parametrize("lossless", [False, True])
def test_native_webp_equals_pil(mode: str, lossless: bool, draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(33, 47, mode=mode), "WEBP", lossless=lossless)
    assert np.array_equal(native(data), by_pil(data))


@pytest.mark.parametrize("kind", ["GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("width", [16, 53, 160])
def test_single_gif_bmp_and_tiff_equal_pil(kind: str, width: int, draw_image: Draw, encode_image: Encode) -> None:
    image = draw_image(width, 21, mode="P" if kind == "GIF" else "RGB")
    options = {"transparency": 16} if kind == "GIF" else {}
    data = encode_image(image, kind, **options)
    assert np.array_equal(native(data), by_pil(data))


def test_multi_picture_jpeg_gives_its_first_picture(draw_image: Draw, encode_image: Encode) -> None:
    first = draw_image(24, 16)
    data = encode_image(first, "MPO", save_all=True, append_images=[draw_image(12, 8)])
    assert np.array_equal(native(data), by_pil(data))


# Orientation


@pytest.mark.parametrize("kind", [*KINDS, "TIFF", "CMYK"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_equals_pil_upright(
    orientation: int, kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = draw_image(20, 31, mode="CMYK" if kind == "CMYK" else "RGB")
    data = encode_image(image, "JPEG" if kind == "CMYK" else kind, exif=exif)
    header = read_header(data)
    assert (header.width, header.height) == ((31, 20) if orientation >= 5 else (20, 31))
    assert np.array_equal(native(data), by_pil(data))
    assert native(data).flags.c_contiguous


@pytest.mark.parametrize("orientation", range(1, 9))
def test_resizing_then_turning_is_close_to_turning_then_resizing(
    orientation: int, draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(40, 62), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    size = (29, 17)
    ours = decode(data, read_header(data), size, scaled=False)
    assert ours.shape == (17, 29, 3)
    # Turning before resizing swaps the resizer's two passes, each of which rounds to 8 bits.
    assert np.abs(ours.astype(int) - np.asarray(upright.resize(size, Image.Resampling.BICUBIC))).max() <= 2


def test_damaged_exif_leaves_the_image_as_stored(draw_image: Draw, encode_image: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = encode_image(draw_image(20, 31), "JPEG", exif=exif)
    at = whole.index(b"Exif\0\0") + 6
    damaged = whole[: at + 4] + b"\xff\xff\xff\x7f" + whole[at + 8 :]
    assert read_header(damaged) == Header(20, 31, 1, 0)
    assert native(damaged).shape == (31, 20, 3)


# Resizing


@pytest.mark.parametrize("filter", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("kind", KINDS)
def test_resized_equals_pil(kind: str, filter: str, draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(60, 45), kind)
    header = read_header(data)
    for size in ((31, 45), (60, 9), (13, 90), (1, 1)):
        ours = decode(data, header, size, interpolation=filter, scaled=False)  # type: ignore[arg-type]
        theirs = Image.open(io.BytesIO(data)).convert("RGB").resize(size, Image.Resampling[filter.upper()])
        assert np.array_equal(ours, np.asarray(theirs)), size


@pytest.mark.parametrize("size", [(100, 75), (99, 74), (50, 37), (40, 75), (25, 19), (12, 9), (3, 2), (1, 1)])
def test_scaled_decode_is_close_and_has_the_exact_size(
    size: tuple[int, int], draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(200, 150), "JPEG", quality=95)
    header = read_header(data)
    fast = decode(data, header, size).astype(int)
    exact = decode(data, header, size, scaled=False).astype(int)
    assert fast.shape == exact.shape == (size[1], size[0], 3)
    assert np.abs(fast - exact).mean() < 6


def test_scaled_decode_needs_both_sides_to_shrink_twofold(draw_image: Draw, encode_image: Encode) -> None:
    data = encode_image(draw_image(200, 150), "JPEG")
    header = read_header(data)
    assert np.array_equal(decode(data, header, (20, 76)), decode(data, header, (20, 76), scaled=False))
    assert not np.array_equal(decode(data, header, (20, 75)), decode(data, header, (20, 75), scaled=False))


# Crops


@pytest.mark.parametrize("size", [(25, 18), (17, 31), (50, 36)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_box_equals_pil_crop_and_resize_of_the_upright_image(
    orientation: int, kind: str, size: tuple[int, int], draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = draw_image(60, 70) if orientation < 5 else draw_image(70, 60)
    data = encode_image(image, kind, exif=exif)
    left, top, width, height = box = (7, 20, 25, 18)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    corners = (left, top, left + width, top + height)
    ours = decode(data, read_header(data), size, box, scaled=False)
    assert ours.flags.c_contiguous
    if size == (width, height):
        assert np.array_equal(ours, np.asarray(upright.crop(corners)))
    else:  # turning swaps the resizer's two passes, each of which rounds to 8 bits
        theirs = np.asarray(upright.resize(size, Image.Resampling.BICUBIC, corners))
        assert np.abs(ours.astype(int) - theirs).max() <= 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_box_that_shrinks_twofold_is_decoded_at_a_lower_scale(
    orientation: int, draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(403, 301), "JPEG", quality=95, exif=exif)
    header = read_header(data)
    box = (31, 50, 200, 240)
    for size, scaled in (((100, 120), True), ((49, 60), True), ((101, 120), False), ((100, 121), False)):
        fast, exact = (decode(data, header, size, box, scaled=s).astype(int) for s in (True, False))
        assert fast.shape == exact.shape == (size[1], size[0], 3)
        assert np.array_equal(fast, exact) != scaled, size
        assert np.abs(fast - exact).mean() < 6


# Channels


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize(("source", "mode"), [(s, m) for s in ("L", "RGB") for m in ("L", "RGB", "RGBA")])
@pytest.mark.parametrize("size", [(20, 30), (10, 15), (13, 40)])
def test_image_mode_sets_the_channels(
    source: str, mode: str, size: tuple[int, int], kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(20, 30, mode=source), kind)
    header = read_header(data)
    ours = decode(data, header, size, mode=mode, scaled=False)  # type: ignore[arg-type]
    theirs = Image.open(io.BytesIO(data))
    if kind == "JPEG" and mode == "L":
        theirs.draft("L", theirs.size)  # the stored luminance, without a round trip through RGB
    expected = np.asarray(theirs.convert(mode).resize(size, Image.Resampling.BICUBIC)).reshape(size[1], size[0], -1)
    assert ours.shape == (size[1], size[0], len(mode))
    assert np.array_equal(ours, expected)
    if mode == "RGBA":
        assert ours[..., 3].min() == 255


def test_alpha_of_a_png_is_kept_as_rgba_and_dropped_as_rgb(draw_image: Draw, encode_image: Encode) -> None:
    image = draw_image(20, 30, mode="RGBA")
    data = encode_image(image, "PNG")
    assert np.array_equal(native(data, "RGBA"), np.asarray(image))
    assert np.array_equal(native(data), np.asarray(image)[..., :3])


def test_decoded_pixels_belong_to_the_caller(draw_image: Draw, encode_image: Encode) -> None:
    for kind in ("JPEG", "PNG"):
        data = encode_image(draw_image(20, 30), kind)
        for size in ((20, 30), (11, 12)):
            pixels = decode(data, read_header(data), size)
            assert pixels.flags.writeable
            assert pixels.flags.c_contiguous
            assert pixels.dtype == np.uint8


def test_photographs_equal_pil(clothing: str) -> None:
    from patchnpack.loaders.shards.tar import read_samples

    path = Path(clothing) / "train-000009.tar"
    whole = path.read_bytes()
    for sample in read_samples(str(path)):
        offset, nbytes = sample.members["jpg"]
        data = whole[offset : offset + nbytes]
        assert simplejpeg.is_jpeg(data)
        assert np.array_equal(native(data), by_pil(data))
