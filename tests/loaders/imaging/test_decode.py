from __future__ import annotations

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageOps, features

from patchnpack.loaders.errors import MAX_PIXELS, BadImage
from patchnpack.loaders.imaging import decode as decode_module
from patchnpack.loaders.imaging.decode import Header, UnreadKind, decode, read_header

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]

needs_webp = pytest.mark.skipif(not features.check("webp"), reason="this PIL was built without WebP")
KINDS = ["JPEG", "PNG", pytest.param("WEBP", marks=needs_webp)]


def native(data: bytes, mode: str = "RGB") -> np.ndarray:
    header = read_header(data)
    return decode(data, header, (header.width, header.height), mode=mode)  # type: ignore[arg-type]


def outcome(data: bytes, size: tuple[int, int] | None = None) -> np.ndarray | str:
    """The image, or why it is bad."""
    try:
        header = read_header(data)
        # Of an image that now claims to be huge, the header is enough.
        if header.width * header.height > 1 << 20:
            return "huge"
        return decode(data, header, size or (header.width, header.height))
    except BadImage as error:
        return str(error)


def by_pil(data: bytes, mode: str = "RGB") -> np.ndarray:
    """What PIL makes of it, as (H, W, C)."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    pixels = np.asarray(image.convert(mode))
    return pixels if pixels.ndim == 3 else pixels[..., None]


def png(
    width: int, height: int, *, bits: int = 8, color: int = 2, rows: bytes | None = None, extra: bytes = b""
) -> bytes:
    """A PNG whose header says what is asked for, true or not."""

    def chunk(kind: bytes, payload: bytes) -> bytes:
        return struct.pack(">I", len(payload)) + kind + payload + struct.pack(">I", zlib.crc32(kind + payload))

    if rows is None:
        stride = -(-width * bits * {0: 1, 2: 3, 4: 2, 6: 4}[color] // 8)
        rows = bytes((1 + stride) * height)
    header = struct.pack(">IIBBBBB", width, height, bits, color, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


# Kinds that are read


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
def test_png_of_few_bits_is_read_as_pil_does(bits: int) -> None:
    rng = np.random.default_rng(bits)
    stride = -(-21 * bits // 8)
    data = png(21, 9, bits=bits, color=0, rows=b"".join(b"\0" + rng.bytes(stride) for _ in range(9)))
    assert np.array_equal(native(data), by_pil(data))


def test_interlaced_png_equals_pil(draw_image: Draw) -> None:
    # PIL writes none: one pixel image a pass, Adam7, of 8x8 grey pixels.
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
    data = bytearray(png(8, 8, color=0, rows=rows))
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
def test_every_orientation_is_upright_as_pil_makes_it(
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
def test_resized_and_turned_is_turned_and_resized(orientation: int, draw_image: Draw, encode_image: Encode) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(draw_image(40, 62), "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    size = (29, 17)
    ours = decode(data, read_header(data), size, scaled=False)
    assert ours.shape == (17, 29, 3)
    # Turning before resizing swaps the resizer's two passes, each of which rounds to 8 bits.
    assert np.abs(ours.astype(int) - np.asarray(upright.resize(size, Image.Resampling.BICUBIC))).max() <= 2


def test_damaged_exif_leaves_the_image_as_it_is_stored(draw_image: Draw, encode_image: Encode) -> None:
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
def test_scaled_decode_is_close_and_of_the_exact_size(
    size: tuple[int, int], draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(200, 150), "JPEG", quality=95)
    header = read_header(data)
    fast = decode(data, header, size).astype(int)
    exact = decode(data, header, size, scaled=False).astype(int)
    assert fast.shape == exact.shape == (size[1], size[0], 3)
    assert np.abs(fast - exact).mean() < 6


def test_scaled_decode_keeps_off_images_that_one_side_shrinks_less_than_twofold(
    draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(200, 150), "JPEG")
    header = read_header(data)
    assert np.array_equal(decode(data, header, (20, 76)), decode(data, header, (20, 76), scaled=False))
    assert not np.array_equal(decode(data, header, (20, 75)), decode(data, header, (20, 75), scaled=False))


# Crops


@pytest.mark.parametrize("size", [(25, 18), (17, 31), (50, 36)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_box_of_the_upright_image_is_what_pil_crops_and_resizes(
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
    else:  # turned before or after the resizer's two passes, each of which rounds to 8 bits
        theirs = np.asarray(upright.resize(size, Image.Resampling.BICUBIC, corners))
        assert np.abs(ours.astype(int) - theirs).max() <= 3


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_box_that_shrinks_twofold_is_decoded_at_a_lower_scale_and_close(
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
        theirs.draft("L", theirs.size)  # the stored luminance, instead of a round trip over RGB
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


# Kinds and damage that are refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "begins with b''"),
        (b"\xff\xd8", "ValueError"),
        (b"\xff\xd8\xff", "ValueError"),
        (b"no image at all", "begins with b'no image'"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "only JPEG, PNG"),
        (b"P6 1 1 255 abc", "only JPEG, PNG"),
        (b"\x89PNG\r\n\x1a\n", "SyntaxError"),
        (b"GIF89a", "Error"),
        (b"BM", "Error"),
        (b"II*\0", "Error"),
    ],
)
def test_what_is_no_image_is_refused_with_its_first_bytes_or_the_decoders_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage, match=reason):
        read_header(data)


@pytest.mark.parametrize("color", [0, 2, 4, 6])
def test_png_of_16_bits_is_refused(color: int) -> None:
    with pytest.raises(BadImage, match="16 bits a channel"):
        read_header(png(5, 4, bits=16, color=color))


@pytest.mark.parametrize(
    ("dtype", "reason"), [("uint16", "16 bits a channel"), ("float32", "32 bits a channel"), ("int32", "32 bits")]
)
def test_tiff_of_more_than_8_bits_is_refused(dtype: str, reason: str, encode_image: Encode) -> None:
    image = Image.fromarray(np.arange(20).reshape(4, 5).astype(dtype))
    with pytest.raises(BadImage, match=reason):
        read_header(encode_image(image, "TIFF"))


def test_tiff_of_a_colour_space_that_pil_does_not_convert_is_refused(encode_image: Encode) -> None:
    with pytest.raises(BadImage, match="PIL mode 'LAB'"):
        read_header(encode_image(Image.new("LAB", (4, 5)), "TIFF"))


def tiff(width: int, height: int, channels: int, bits: int, *, order: str = "<", orientation: int = 1) -> bytes:
    """A TIFF of black pixels, of as many channels and bits as are asked for."""
    each = struct.pack(f"{order}{channels}H", *[bits] * channels)
    pixels = bytes(width * height * channels * bits // 8)
    start = 8 + 2 + 12 * 10 + 4  # of what does not fit into the directory
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
        with pytest.raises(UnreadKind, match=f"{reason}.* unless decode= is given") as caught:
            read_header(tiff(7, 4, channels, bits, order=order, orientation=orientation))
        assert caught.value.header == Header(*((4, 7) if orientation == 6 else (7, 4)), 1, 6)
    assert not caplog.records  # PIL would log an error for each


@pytest.mark.filterwarnings("ignore::UserWarning")  # PIL's own, on damaged directories
def test_no_cut_of_a_tiff_is_taken_for_a_kind_that_has_no_size() -> None:
    whole = tiff(7, 4, 8, 16)
    for cut in range(8, 200):
        with pytest.raises(BadImage) as caught:
            read_header(whole[:cut])
        if isinstance(caught.value, UnreadKind):
            assert caught.value.header[:2] == (7, 4)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", pytest.param("WEBP", marks=needs_webp)])
def test_several_pages_or_frames_are_refused(kind: str, draw_image: Draw, encode_image: Encode) -> None:
    first, second = draw_image(9, 9, seed=1), draw_image(9, 9, seed=2)
    data = encode_image(first, kind, save_all=True, append_images=[second])
    with pytest.raises(BadImage, match="several pages or frames"):
        read_header(data)


def test_too_many_pixels_are_refused_from_the_header_alone(draw_image: Draw, encode_image: Encode) -> None:
    side = 14_000
    assert side * side > MAX_PIXELS
    jpeg = bytearray(encode_image(draw_image(9, 9), "JPEG"))
    at = jpeg.index(b"\xff\xc0")
    jpeg[at + 5 : at + 9] = struct.pack(">HH", side, side)
    for data in (bytes(jpeg), png(side, side, rows=b"")):
        tracemalloc.start()
        with pytest.raises(BadImage, match=f"14000x14000 pixels; the limits are 1 and {MAX_PIXELS}"):
            read_header(data)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1 << 20


def test_large_image_below_the_limit_brings_no_warning_of_pil() -> None:
    # PIL warns from 89 million pixels on; a warning is an error here.
    assert read_header(png(10_000, 10_000, rows=b"")) == Header(10_000, 10_000, 1, 2)


@needs_webp
def test_webp_that_is_too_large_is_refused(encode_image: Encode) -> None:
    data = bytearray(encode_image(Image.new("RGBA", (9, 9), (1, 2, 3, 4)), "WEBP", exif=b"Exif\0\0"))
    assert data[12:16] == b"VP8X"
    data[24:30] = (16_382).to_bytes(3, "little") * 2
    with pytest.raises(BadImage):
        read_header(bytes(data))


@pytest.mark.parametrize("kind", KINDS)
def test_every_truncation_is_refused_with_a_reason_or_decodes(
    kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    data = encode_image(draw_image(17, 13), kind)
    whole = native(data)
    for n in range(len(data)):
        result = outcome(data[:n])
        if isinstance(result, str):
            assert result
        else:
            # Only what follows the pixels may be missing: checksums and the mark of the end.
            assert np.array_equal(result, whole), n
            assert n >= len(data) - 24


@pytest.mark.parametrize("stated", [(17, 14), (18, 13), (13, 17), (400, 13), (17, 5)])
def test_png_whose_header_lies_about_its_size_is_refused_or_of_that_size(
    stated: tuple[int, int], draw_image: Draw
) -> None:
    pixels = np.asarray(draw_image(17, 13))
    rows = b"".join(b"\0" + line.tobytes() for line in pixels)
    data = png(*stated, rows=rows)
    result = outcome(data)
    assert result if isinstance(result, str) else result.shape == (stated[1], stated[0], 3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("target", [(17, 13), (16, 13), (8, 6)])
def test_bytes_that_are_not_of_the_size_in_the_index_are_refused(
    target: tuple[int, int], kind: str, draw_image: Draw, encode_image: Encode
) -> None:
    header = read_header(encode_image(draw_image(17, 13), kind))
    other = encode_image(draw_image(32, 48), kind)
    with pytest.raises(BadImage, match=r"pixels are .*, its header said 17x13"):
        decode(other, header, target)


@pytest.mark.parametrize(
    # Of damaged TIFF files PIL warns, by design of its parser.
    "kind",
    [*KINDS, "GIF", "BMP", pytest.param("TIFF", marks=pytest.mark.filterwarnings("ignore"))],
)
@pytest.mark.parametrize("options", [{}, {"progressive": True, "interlace": 1, "lossless": True}])
def test_seeded_damage_gives_an_image_or_a_bad_image_and_nothing_else(
    kind: str, options: dict[str, object], draw_image: Draw, encode_image: Encode
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    extra = {"exif": exif} if kind in ("JPEG", "PNG", "WEBP") else {}
    whole = encode_image(draw_image(23, 17, mode="P" if kind in ("PNG", "GIF") else "RGB"), kind, **options, **extra)
    rng = np.random.default_rng(20240229)
    bad = 0
    for _ in range(1000):
        data = bytearray(whole)
        for _ in range(int(rng.integers(1, 4))):
            # Half of the damage lies in the first bytes, where the structure is.
            at = int(rng.integers(min(len(data), 60) if rng.random() < 0.5 else len(data)))
            data[at] ^= 1 << int(rng.integers(8))
        if rng.random() < 0.2:
            del data[int(rng.integers(len(data))) :]
        for size in (None, (5, 3)):
            result = outcome(bytes(data), size)
            assert result if isinstance(result, str) else result.ndim == 3
        bad += isinstance(result, str)
    assert bad > 100


def test_reason_of_a_bad_image_is_the_same_each_time() -> None:
    reasons = set()
    for _ in range(3):
        with pytest.raises(BadImage) as caught:
            read_header(b"not an image")
        reasons.add(str(caught.value))
    assert len(reasons) == 1


def test_image_that_could_make_pil_run_another_program_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(BadImage):
        read_header(eps)
    with pytest.raises(BadImage):
        decode(eps, Header(9, 9, 1, 2), (9, 9))


def test_webp_without_support_is_a_value_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_module, "WEBP_SUPPORTED", False)
    with pytest.raises(ValueError, match="built without WebP; in a checkout: make setup SIMD=0"):
        read_header(b"RIFF\x24\0\0\0WEBPVP8 " + bytes(24))


def test_mistake_that_is_not_the_images_is_not_taken_for_a_bad_one(
    monkeypatch: pytest.MonkeyPatch, draw_image: Draw, encode_image: Encode
) -> None:
    for kind in ("JPEG", "PNG"):
        data = encode_image(draw_image(20, 30), kind)
        with pytest.raises(ValueError, match="height and width must be > 0"):
            decode(data, read_header(data), (0, 5), scaled=False)


def test_photographs_equal_pil(clothing: str) -> None:
    from patchnpack.loaders.shards.tar import read_samples

    path = Path(clothing) / "train-000009.tar"
    whole = path.read_bytes()
    for sample in read_samples(str(path)):
        offset, nbytes = sample.members["jpg"]
        data = whole[offset : offset + nbytes]
        assert simplejpeg.is_jpeg(data)
        assert np.array_equal(native(data), by_pil(data))
