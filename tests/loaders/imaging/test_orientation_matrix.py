"""Every way to say how an image was held, against `PIL.ImageOps.exif_transpose`."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import PIL
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, features

from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.exif import orientation
from patchnpack.loaders.imaging.header import image_header, read_header
from tests.loaders.imaging import orientations as ways

WIDTH, HEIGHT = 9, 7
needs_webp = pytest.mark.skipif(not features.check("webp"), reason="this PIL reads no WebP")
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this PIL reads no AVIF")

# Damaged blocks are read in another way by every major version of Pillow; the loader follows the newest.
READS_DAMAGED_ALIKE = int(PIL.__version__.split(".")[0]) >= 13
DAMAGED = ("twice", "beyond the end")
pytestmark = pytest.mark.filterwarnings("ignore")


def as_pil_turns(data: bytes) -> np.ndarray | None:
    """What `exif_transpose` gives, None where it raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    except (SyntaxError, ValueError, TypeError, OSError):
        return None
    return np.asarray(image.convert("RGB"))


def upright(data: bytes) -> np.ndarray:
    header = read_header(data)
    return decode(data, header, (header.width, header.height))


def assert_equals_pil(name: str, data: bytes) -> None:
    expected = as_pil_turns(data)
    if expected is None or (any(word in name for word in DAMAGED) and not READS_DAMAGED_ALIKE):
        assert orientation(data) in range(1, 9), name
        return
    found = upright(data)
    np.testing.assert_allclose(found.astype(int), expected, atol=2, err_msg=name)


def jpegs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    plain = ways.encoded(image, "JPEG", quality=95, subsampling=0)
    for name, exif, xmp in ways.metadata():
        yield name, ways.in_jpeg(plain, exif, xmp)
    block = dict(ways.exif_blocks())["after a maker"]
    cut = ways.in_jpeg(plain, block[:20], None)
    yield "in two segments", ways.in_jpeg(cut[:2] + b"", block[:20], None)[:2] + _segments(block, 20) + plain[2:]
    whole = ways.in_jpeg(plain, dict(ways.exif_blocks())["<H3=6"], None)
    yield "after bytes between segments", whole[:2] + b"\x00\x01\x02" + whole[2:]
    yield "after fill bytes", whole[:2] + b"\xff\xff" + whole[2:]


def _segments(block: bytes, at: int) -> bytes:
    return b"".join(ways.in_jpeg(b"", part, None) for part in (block[:at], block[at:]))


def pngs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    plain = ways.encoded(image, "PNG")
    for kind in ("chunk", "tEXt", "zTXt", "iTXt"):
        for name, exif, xmp in ways.metadata():
            chunks = ways.png_metadata(kind, exif, xmp)
            yield f"{kind} {name}", ways.in_png(plain, chunks)
            yield f"{kind} {name} after the pixels", ways.in_png(plain, chunks, after=True)
    three, six = (ways.png_metadata("chunk", dict(ways.exif_blocks())[f"<H3={value}"], None) for value in (3, 6))
    yield "two blocks", ways.in_png(plain, three + six)
    yield "a block before and one after", ways.in_png(ways.in_png(plain, three), six, after=True)
    yield (
        "a profile and a block",
        ways.in_png(plain, ways.png_metadata("tEXt", dict(ways.exif_blocks())["<H3=8"], None) + six),
    )


def webps(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    plain = ways.encoded(image, "WEBP", lossless=True)
    for name, exif, xmp in ways.metadata():
        whole = ways.in_webp(plain, exif, xmp, *image.size)
        yield name, whole
        if exif is not None:
            yield f"{name} without its flag", whole[:20] + b"\0" + whole[21:]


def tiffs(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    for order in "<>":
        for kind in ways.KINDS:
            for value in range(1, 10):
                yield f"{order}{kind}={value}", ways.in_tiff(image, kind, value, None, order)
        for name, xmp in ways.xmp_packets():
            yield f"{order}xmp {name}", ways.in_tiff(image, None, 0, xmp, order)
            yield f"{order}xmp {name} and a tag", ways.in_tiff(image, 3, 8, xmp, order)


@pytest.mark.parametrize(
    "sources", [jpegs, pngs, pytest.param(webps, marks=needs_webp), tiffs], ids=lambda sources: sources.__name__
)
def test_every_way_to_say_it_equals_exif_transpose(
    sources: Callable[[Image.Image], Iterator[tuple[str, bytes]]], draw_image: Callable[..., Image.Image]
) -> None:
    turned = set()
    for name, data in sources(draw_image(WIDTH, HEIGHT)):
        assert_equals_pil(name, data)
        turned.add(orientation(data))
    assert turned == set(range(1, 9))


def test_pil_images_of_every_format_equal_exif_transpose(draw_image: Callable[..., Image.Image]) -> None:
    image = draw_image(WIDTH, HEIGHT)
    for name, data in [*jpegs(image), *pngs(image), *tiffs(image)]:
        expected = as_pil_turns(data)
        if expected is None or any(word in name for word in ("after the pixels", "one after", *DAMAGED)):
            continue  # PIL reads chunks after the pixels only as it loads them
        for loaded in (False, True):
            held = Image.open(io.BytesIO(data))
            if loaded:
                held.load()
            header = image_header(held)
            found = decode(held, header, (header.width, header.height))
            np.testing.assert_array_equal(found, expected, f"{name}, {loaded}")


@needs_avif
@pytest.mark.parametrize("value", range(1, 9))
def test_avif_is_turned_by_its_own_boxes(value: int, draw_image: Callable[..., Image.Image]) -> None:
    exif = Image.Exif()
    exif[ways.ORIENTATION] = value
    data = ways.encoded(draw_image(WIDTH, HEIGHT), "AVIF", exif=exif)
    assert read_header(data).orientation == value == Image.open(io.BytesIO(data)).getexif().get(ways.ORIENTATION, 1)


@settings(deadline=None, max_examples=300)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_damaged_exif_is_read_as_pil_reads_it_and_never_raises(seed: int, changes: int) -> None:
    rng = np.random.default_rng(seed)
    blocks = [block for _, block in ways.exif_blocks()]
    block = bytearray(blocks[rng.integers(len(blocks))])
    for _ in range(changes):
        block[rng.integers(len(block))] = rng.integers(256)
    data = ways.in_jpeg(JPEG, bytes(block[: rng.integers(1, len(block) + 1)]), None)
    assert orientation(data) in range(1, 9)
    if READS_DAMAGED_ALIKE:
        assert_equals_pil(repr(bytes(block)), data)


JPEG = ways.encoded(Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB"), "JPEG")
