"""Pages and frames of image files: their headers as runs, and their pixels as PIL gives them one after the other."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image, ImageOps, features
from PIL.TiffImagePlugin import AppendingTiffWriter

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_pages import Wanted, decode_pages
from patchnpack.loaders.imaging.header import image_header, read_header
from patchnpack.loaders.imaging.pages import PageRun, page_headers
from tests.images import draw_image, encode_image
from tests.loaders.imaging.animations import animation, composited, webp, webp_frames
from tests.loaders.imaging.tiffs import write_tiff

pytestmark = pytest.mark.filterwarnings("ignore")  # PIL warns of damaged TIFFs and of palettes with alpha


def decoded(data: bytes, mode: Any = "RGB", pages: Sequence[int] | None = None) -> list[np.ndarray | BadImage]:
    """Whole pages at native size, by default all."""
    headers = [run.header for run in page_headers(data) for _ in range(run.frames)]
    chosen = range(len(headers)) if pages is None else pages
    wanted = [Wanted(page, headers[page], (headers[page].width, headers[page].height)) for page in chosen]
    return list(decode_pages(data, wanted, mode=mode))


def by_pil(data: bytes, mode: str) -> list[np.ndarray]:
    """The frames that PIL finds, upright."""

    def converted(image: Image.Image) -> Image.Image:
        if image.mode == "P":  # from a palette to grey, PIL rounds otherwise than from RGB
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        return image.convert(mode)

    frames: list[Image.Image] = []
    with suppress(EOFError):
        while True:  # Pillow 13 disposes of frames otherwise if those before were loaded
            with Image.open(io.BytesIO(data)) as opened:
                opened.seek(len(frames))
                frames.append(ImageOps.exif_transpose(converted(opened)))
    return [np.asarray(frame).reshape(frame.height, frame.width, len(mode)) for frame in frames]


def same(one: np.ndarray | BadImage, other: np.ndarray | BadImage) -> bool:
    return isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.array_equal(one, other)


def assert_same(found: Sequence[np.ndarray | BadImage], expected: Sequence[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for number, (ours, theirs) in enumerate(zip(found, expected, strict=True)):
        assert isinstance(ours, np.ndarray), (number, ours)
        assert np.array_equal(ours, theirs), number


def several_tiff(kinds: Sequence[tuple[str, tuple[int, int], int]]) -> bytes:
    """A TIFF of pages of these modes, sizes and orientations."""
    file = io.BytesIO()
    with AppendingTiffWriter(file, new=True) as writer:
        for number, (mode, size, orientation) in enumerate(kinds):
            image = draw_image(*size, seed=number).convert(mode)
            image.save(writer, "TIFF", tiffinfo={274: orientation})
            writer.newFrame()
    return file.getvalue()


MIXED = [
    ("RGB", (24, 16), 1),
    ("L", (10, 31), 6),
    ("RGB", (24, 16), 3),
    ("1", (17, 9), 1),
    ("CMYK", (12, 20), 8),
    ("P", (9, 7), 5),
    ("RGBA", (13, 11), 7),
]


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_pages_of_a_tiff_have_sizes_orientations_and_pixels_of_their_own(mode: str) -> None:
    data = several_tiff(MIXED)
    runs = page_headers(data)
    expected = by_pil(data, mode)
    assert [(run.page, run.frames, run.reason) for run in runs] == [(i, 1, None) for i in range(len(MIXED))]
    assert [(run.header.width, run.header.height) for run in runs] == [each.shape[1::-1] for each in expected]
    assert [run.header.pages for run in runs] == [len(MIXED)] * len(MIXED)
    assert_same(decoded(data, mode), expected)
    assert_same(decoded(data, mode, [5, 1, 1, 6]), [expected[page] for page in (5, 1, 1, 6)])


@pytest.mark.parametrize("big", [False, True])
def test_pages_of_a_bigtiff_are_decoded(big: bool) -> None:
    pixels = [np.asarray(draw_image(8, 6, seed=seed)) for seed in range(3)]
    data = write_tiff(8, 6, [pixels[0].tobytes()], photometric=2, bits=(8, 8, 8), pages=3, big=big)
    assert [run.page for run in page_headers(data)] == [0, 1, 2]
    assert_same(decoded(data), [pixels[0]] * 3)


def test_a_page_that_cannot_be_read_leaves_the_others() -> None:
    data = bytearray(several_tiff(MIXED[:3]))
    (second,) = struct.unpack_from("<I", data, _link(bytes(data)))
    struct.pack_into("<H", data, second + 2 + 12 * _entry(bytes(data), second, 258) + 8, 16)  # bits per sample
    runs = page_headers(bytes(data))
    assert [run.reason is None for run in runs] == [True, False, True]
    assert "16 bits" in str(runs[1].reason)
    found = decoded(bytes(data), pages=[0, 2])
    assert all(isinstance(each, np.ndarray) for each in found)


def _link(data: bytes) -> int:
    """Where a TIFF says where its second directory begins."""
    first = int(struct.unpack_from("<I", data, 4)[0])
    return first + 2 + 12 * int(struct.unpack_from("<H", data, first)[0])


def _entry(data: bytes, at: int, tag: int) -> int:
    count = struct.unpack_from("<H", data, at)[0]
    return next(i for i in range(int(count)) if struct.unpack_from("<H", data, at + 2 + 12 * i)[0] == tag)


def test_a_tiff_cut_between_its_pages_has_a_bad_last_page() -> None:
    data = several_tiff(MIXED[:3])
    (second,) = struct.unpack_from("<I", data, _link(data))
    runs = page_headers(data[: second + 4])
    assert [run.reason is None for run in runs] == [True, False]
    assert runs[1].header.width == 0
    assert read_header(data[: second + 4]).pages == 1


def test_a_tiff_whose_pages_form_a_circle_ends() -> None:
    data = bytearray(several_tiff(MIXED[:2]))
    (first,) = struct.unpack_from("<I", data, 4)
    (second,) = struct.unpack_from("<I", data, _link(bytes(data)))
    struct.pack_into("<I", data, second + 2 + 12 * struct.unpack_from("<H", data, second)[0], first)
    assert len(page_headers(bytes(data))) == 2


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("disposal", [0, 1, 2, [0, 1, 2, 2, 0, 1]])
@pytest.mark.parametrize("kind", ["RGBA", "RGB", "L"])
def test_frames_of_a_gif_are_composited_as_in_pil(kind: str, disposal: int | list[int], mode: str) -> None:
    first, *others = animation(1, kind)
    data = encode_image(first, "GIF", save_all=True, append_images=others, disposal=disposal)
    (run,) = page_headers(data)
    expected = by_pil(data, mode)
    assert (run.page, run.frames, run.reason) == (0, len(expected), None)
    assert_same(decoded(data, mode), expected)
    assert_same(decoded(data, mode, [4]), expected[4:5])
    assert_same(decoded(data, mode, [5, 0, 5, 2]), [expected[page] for page in (5, 0, 5, 2)])


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize("default_image", [False, True])
@pytest.mark.parametrize("disposal", [0, 1, 2, [0, 1, 2, 2, 0, 1]])
@pytest.mark.parametrize("blend", [0, 1, [1, 0, 1, 1, 0, 1]])
def test_frames_of_an_apng_are_composited_as_in_pil(
    blend: int | list[int], disposal: int | list[int], default_image: bool, mode: str
) -> None:
    first, *others = animation(2)
    options: dict[str, Any] = {"save_all": True, "append_images": others, "default_image": default_image}
    if default_image:
        blend, disposal = (each[1:] if isinstance(each, list) else each for each in (blend, disposal))
    data = encode_image(first, "PNG", blend=blend, disposal=disposal, **options)
    (run,) = page_headers(data)
    expected = by_pil(data, mode)
    assert (run.page, run.frames, run.reason) == (0, len(expected), None)
    assert_same(decoded(data, mode), expected)
    assert_same(decoded(data, mode, [3, 1]), [expected[3], expected[1]])


@pytest.mark.parametrize("seed", range(4))
def test_frames_of_a_webp_are_composited(seed: int) -> None:
    frames = list(webp_frames(seed))
    data = webp(frames, (32, 24))
    (run,) = page_headers(data)
    assert (run.frames, run.header.width, run.header.height) == (8, 32, 24)
    expected = composited(frames, (32, 24))
    if features.check("webp"):
        assert_same(by_pil(data, "RGBA"), expected)
        assert_same(decoded(data, "RGB"), by_pil(data, "RGB"))
    assert_same(decoded(data, "RGBA"), expected)
    assert_same(decoded(data, "RGBA", [6, 2]), [expected[6], expected[2]])


def test_frames_of_an_avif_sequence_are_decoded() -> None:
    pixels = np.stack([np.asarray(draw_image(32, 16, seed=seed)) for seed in range(4)])
    data = bytes(imagecodecs.avif_encode(pixels, level=100, numthreads=1))
    (run,) = page_headers(data)
    assert (run.frames, run.reason) == (4, None)
    found = decoded(data)
    assert all(np.abs(a.astype(int) - b).mean() < 3 for a, b in zip(found, pixels, strict=True))  # type: ignore[union-attr]
    (third,) = decoded(data, pages=[2])
    assert same(third, found[2])


def test_images_of_a_heic_have_sizes_of_their_own_and_the_primary_one_is_first() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    images = [draw_image(32 + 16 * seed, 48, seed=seed) for seed in range(3)]
    heif = pillow_heif.from_pillow(images[0])
    for image in images[1:]:
        heif.add_from_pillow(image)
    file = io.BytesIO()
    heif.save(file, quality=95, primary_index=1)
    data = file.getvalue()
    runs = page_headers(data)
    assert [(run.header.width, run.page, run.reason) for run in runs] == [(48, 0, None), (32, 1, None), (64, 2, None)]
    opened = pillow_heif.open_heif(data)
    assert_same(decoded(data), [np.asarray(opened[number].to_pillow()) for number in (1, 0, 2)])
    assert same(decoded(data, pages=[0])[0], decode(data, read_header(data), (48, 48)))


def test_a_jpeg_xl_animation_is_its_first_frame() -> None:
    pixels = np.stack([np.asarray(draw_image(8, 6, seed=seed)) for seed in range(3)])
    data = bytes(imagecodecs.jpegxl_encode(pixels, lossless=True))
    (run,) = page_headers(data)
    assert (run.page, run.frames) == (0, 1)
    assert_same(decoded(data), [pixels[0]])
    (found,) = decode_pages(data, [Wanted(1, run.header, (8, 6))])
    assert "only its first" in str(found)


def test_ordinary_images_are_one_run_of_one_frame() -> None:
    for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF"):
        data = encode_image(draw_image(9, 7), kind)
        assert page_headers(data) == [PageRun(read_header(data), None, 0, 1)]
        assert same(decoded(data)[0], decode(data, read_header(data), (9, 7)))
    (run,) = page_headers(b"no image")
    assert (run.header.width, run.frames) == (0, 1)
    assert "begins with" in str(run.reason)
    (found,) = decode_pages(encode_image(draw_image(9, 7), "BMP"), [Wanted(1, read_header(data), (9, 7))])
    assert isinstance(found, BadImage)


def test_the_frames_of_an_animation_are_those_that_are_there() -> None:
    first, *others = animation(3)
    data = bytearray(encode_image(first, "PNG", save_all=True, append_images=others))
    at = data.find(b"acTL")
    for listed, frames in ((2**31, 6), (2**32 - 1, 1), (4, 4)):
        struct.pack_into(">I", data, at + 4, listed)
        struct.pack_into(">I", data, at + 12, zlib.crc32(data[at : at + 12]))
        (run,) = page_headers(bytes(data))
        assert run.frames == run.header.pages == read_header(bytes(data)).pages == frames
    gif = encode_image(first, "GIF", save_all=True, append_images=others)
    assert page_headers(gif[: len(gif) // 2])[0].frames < 6


def test_a_number_of_frames_that_no_file_holds_is_refused() -> None:
    pixels = np.stack([np.asarray(draw_image(32, 16, seed=seed)) for seed in range(2)])
    data = bytearray(imagecodecs.avif_encode(pixels, numthreads=1))
    at = data.find(b"stsz")
    struct.pack_into(">II", data, at + 8, 1, 2**32 - 1)
    assert read_header(bytes(data)).pages == 2**31 - 1  # as many as an index can say
    (run,) = page_headers(bytes(data))
    assert (run.frames, run.header.width) == (1, 0)
    assert "4294967295 frames" in str(run.reason)


def test_frames_before_the_damage_are_decoded() -> None:
    first, *others = animation(4)
    for kind in ("GIF", "PNG"):
        data = encode_image(first, kind, save_all=True, append_images=others)
        expected, data = by_pil(data, "RGBA"), data[: 3 * len(data) // 4]
        run = page_headers(data)[0]
        found = list(decode_pages(data, [Wanted(i, run.header, (32, 24)) for i in range(run.frames)], mode="RGBA"))
        good = [number for number, each in enumerate(found) if isinstance(each, np.ndarray)]
        assert 2 <= len(good) < 6
        assert good == list(range(len(good)))
        assert_same([found[number] for number in good], expected[: len(good)])


def test_a_truncated_webp_is_bad_as_a_whole() -> None:
    data = webp(list(webp_frames(0)), (32, 24))
    found = decoded(data[: data.rfind(b"ANMF") + 60])
    assert len(found) == 8
    assert all("WebPDemux" in str(each) for each in found)


def test_an_animation_over_the_limit_of_pixels_is_bad() -> None:
    first, *others = animation(5)
    data = bytearray(encode_image(first, "GIF", save_all=True, append_images=others))
    struct.pack_into("<HH", data, 6, 60_000, 60_000)
    (run,) = page_headers(bytes(data))
    assert (run.frames, run.header.width) == (1, 0)
    small = read_header(encode_image(first, "GIF", save_all=True, append_images=others))
    found = list(decode_pages(bytes(data), [Wanted(i, small, (32, 24)) for i in range(3)]))
    assert all(isinstance(each, BadImage) for each in found)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "TIFF", "WEBP"])
def test_damaged_files_of_several_pages_give_bad_images_and_nothing_else(kind: str) -> None:
    first, *others = animation(6)
    if kind == "WEBP":
        whole = webp(list(webp_frames(1)), (32, 24))
    else:
        whole = (
            several_tiff(MIXED) if kind == "TIFF" else encode_image(first, kind, save_all=True, append_images=others)
        )
    rng = np.random.default_rng(0)
    for _ in range(60):
        data = bytearray(whole)
        for at in rng.integers(0, len(data), 6):
            data[at] = rng.integers(256)
        data = data[: rng.integers(20, len(data))] if rng.random() < 0.3 else data
        runs = page_headers(bytes(data))
        assert sum(run.frames for run in runs) <= len(data)
        headers = [run.header for run in runs for _ in range(run.frames) if run.reason is None][:20]
        wanted = [Wanted(page, header, (8, 8)) for page, header in enumerate(headers)]
        assert all(isinstance(each, np.ndarray | BadImage) for each in decode_pages(bytes(data), wanted))


def test_frames_of_a_pil_image_are_decoded_and_leave_it_where_it_was() -> None:
    first, *others = animation(7)
    data = encode_image(first, "GIF", save_all=True, append_images=others)
    expected = by_pil(data, "RGB")
    with Image.open(io.BytesIO(data)) as image:
        header = image_header(image)
        wanted = [Wanted(page, header, (32, 24)) for page in (3, 0, 5)]
        assert_same(list(decode_pages(image, wanted)), [expected[page] for page in (3, 0, 5)])
        assert image.tell() == 0
    with Image.open(io.BytesIO(encode_image(first, "PNG"))) as image:
        (found,) = decode_pages(image, [Wanted(1, image_header(image), (32, 24))])
        assert isinstance(found, BadImage)
