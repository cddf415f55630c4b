"""Several parts of one image come from one decode, with the pixels that each has alone."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_pages import Wanted, decode_pages
from patchnpack.loaders.imaging.header import Header, image_header, read_header
from tests.images import draw_image, encode_image


def views(header: Header, seed: int = 0) -> list[Wanted]:
    """Crops of many sizes, resized up, down and not at all, the whole image among them."""
    rng = np.random.default_rng(seed)
    wanted = [Wanted(0, header, (header.width, header.height)), Wanted(0, header, (31, 17))]
    for number in range(8):
        width, height = (int(rng.integers(8, side + 1)) for side in (header.width, header.height))
        left, top = int(rng.integers(header.width - width + 1)), int(rng.integers(header.height - height + 1))
        size = (width, height) if number % 3 == 0 else tuple(int(side) for side in rng.integers(4, 90, 2))
        wanted.append(Wanted(0, header, (size[0], size[1]), (left, top, width, height)))
    return wanted


def assert_each_as_alone(data: Any, wanted: list[Wanted], **options: Any) -> None:
    together = list(decode_pages(data, wanted, **options))
    for item, found in zip(wanted, together, strict=True):
        alone = decode(data, item.header, item.size, item.box, **options)
        assert isinstance(found, np.ndarray)
        assert found.dtype == np.uint8
        assert found.flags.c_contiguous
        assert found.shape == alone.shape
        assert np.array_equal(found, alone), item


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("orientation", [1, 2, 6, 7])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "TIFF"])
def test_views_of_a_full_decode_are_those_made_one_by_one(kind: str, orientation: int, mode: str) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options: dict[str, Any] = {} if kind == "GIF" else {"exif": exif.tobytes()}
    data = encode_image(draw_image(160, 97), kind, **options)
    header = read_header(data)
    for interpolation in ("bicubic", "bilinear"):
        assert_each_as_alone(data, views(header), mode=mode, interpolation=interpolation, scaled=False)


@pytest.mark.parametrize("source_mode", ["RGB", "RGBA", "L", "LA", "P", "CMYK", "1"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_views_of_every_kind_of_pixels_are_those_made_one_by_one(source_mode: str, mode: str) -> None:
    image = draw_image(60, 41).convert(source_mode)
    held: list[Any] = [image]
    held += [encode_image(image, kind) for kind in ("PNG", "TIFF") if kind == "TIFF" or source_mode != "CMYK"]
    if source_mode in ("RGB", "RGBA", "L"):
        held.append(np.asarray(image))
    for data in held:
        header = read_header(data) if isinstance(data, bytes) else image_header(data)
        assert_each_as_alone(data, views(header), mode=mode, scaled=False)


def test_small_views_decode_a_jpeg_at_the_scale_that_the_largest_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    simple = simplejpeg.decode_jpeg

    def watching(*arguments: Any, **options: Any) -> np.ndarray:
        pixels: np.ndarray = simple(*arguments, **options)
        shapes.append(pixels.shape[:2])
        return pixels

    data = encode_image(draw_image(640, 480), "JPEG")
    header = read_header(data)
    monkeypatch.setattr(simplejpeg, "decode_jpeg", watching)
    small = [Wanted(0, header, (40, 30)), Wanted(0, header, (32, 32), (100, 50, 300, 300))]
    list(decode_pages(data, small))
    assert shapes == [(60, 80)]  # an eighth: 32 of 300 pixels would need a ninth
    shapes.clear()
    list(decode_pages(data, [*small, Wanted(0, header, (150, 150), (0, 0, 320, 320))]))
    assert shapes == [(240, 320)]
    shapes.clear()
    list(decode_pages(data, [*small, Wanted(0, header, (10, 60), (0, 0, 640, 120))]))  # by its rows
    assert shapes == [(240, 320)]
    shapes.clear()
    list(decode_pages(data, [*small, Wanted(0, header, (50, 50), (7, 9, 50, 50))]))
    assert shapes == [(480, 640)]
    shapes.clear()
    alone = decode(data, header, (40, 30))
    (found,) = decode_pages(data, small[:1])
    assert isinstance(found, np.ndarray)
    assert np.array_equal(found, alone)
    assert shapes == [(60, 80)] * 2


def test_scaled_views_are_close_to_those_of_a_full_decode() -> None:
    data = encode_image(draw_image(640, 480), "JPEG")
    wanted = [item for item in views(read_header(data)) if item.size != (640, 480)]
    for full, scaled in zip(decode_pages(data, wanted, scaled=False), decode_pages(data, wanted), strict=True):
        assert isinstance(full, np.ndarray)
        assert isinstance(scaled, np.ndarray)
        assert np.abs(full.astype(int) - scaled).mean() < 6


def test_a_bad_image_is_bad_for_each_of_its_views() -> None:
    for kind in ("JPEG", "PNG"):
        data = encode_image(draw_image(160, 97), kind)
        found = list(decode_pages(data[: len(data) // 2], views(read_header(data))))
        assert len(found) == 10
        assert all(isinstance(each, BadImage) for each in found)


def test_a_warning_is_counted_once_per_page() -> None:
    data = encode_image(draw_image(64, 48), "JPEG")
    odd = data[:2] + b"\x00\x00" + data[2:]  # bytes between segments
    warned: list[str] = []
    found = list(decode_pages(odd, views(read_header(odd)), warn=warned.append))
    assert all(isinstance(each, np.ndarray) for each in found)
    assert warned == ["extraneous bytes"]


def test_an_image_held_by_pil_is_decoded_once() -> None:
    image = Image.open(io.BytesIO(encode_image(draw_image(64, 48), "PNG")))
    assert len(list(decode_pages(image, views(image_header(image))))) == 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("size", [(1, 1), (2, 3), (200, 1), (1, 200), (7, 90)])
def test_views_of_tiny_and_thin_images_are_those_made_one_by_one(kind: str, size: tuple[int, int]) -> None:
    exif = Image.Exif()
    exif[274] = 6
    data = encode_image(draw_image(*size), kind, exif=exif.tobytes())
    header = read_header(data)
    width, height = header.width, header.height
    assert (height, width) == size
    boxes = [None, (0, 0, 1, 1), (width // 2, height // 2, width - width // 2, height - height // 2)]
    wanted = [Wanted(0, header, to, box) for box in boxes for to in ((1, 1), (16, 16), (3, 40), (width, height))]
    for mode in ("RGB", "L", "RGBA"):
        assert_each_as_alone(data, wanted, mode=mode, scaled=False)
