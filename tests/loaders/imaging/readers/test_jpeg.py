"""JPEGs that a viewer shows whole are loaded, and their warnings counted; those that end early or are wrong are bad."""

from __future__ import annotations

import io
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.formats import JPEG, OTHER_JPEG
from patchnpack.loaders.imaging.header import UnsupportedImage, read_header
from patchnpack.loaders.imaging.warnings import WARNINGS
from tests.images import draw_image, encode_image
from tests.loaders.imaging.readers import odd_jpegs as odd

WIDTH, HEIGHT = 64, 48
PICTURE = draw_image(WIDTH, HEIGHT)


def loaded(data: bytes, size: tuple[int, int] | None = None, **options: object) -> tuple[np.ndarray, set[str]]:
    """The pixels and the kinds of warnings."""
    kinds: list[str] = []
    header = read_header(data)
    size = size or (header.width, header.height)
    pixels = decode(data, header, size, warn=kinds.append, **options)  # type: ignore[arg-type]
    assert len(kinds) == len(set(kinds))
    return pixels, set(kinds)


def by_pil(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize(
    ("name", "data", "clean", "kinds"), [*odd.oddities(PICTURE)], ids=lambda part: part if isinstance(part, str) else ""
)
def test_odd_file_has_the_pixels_of_the_clean_one_and_its_warnings(
    name: str, data: bytes, clean: bytes, kinds: set[str]
) -> None:
    assert np.array_equal(by_pil(data), by_pil(clean))  # what a viewer shows
    assert read_header(data) == read_header(clean)
    assert kinds <= set(WARNINGS)
    for size, box in ((None, None), ((20, 15), None), ((30, 20), (3, 5, 30, 20)), ((9, 9), (3, 5, 30, 20))):
        pixels, found = loaded(data, size, box=box)
        expected, none = loaded(clean, size, box=box)
        assert np.array_equal(pixels, expected)
        assert (found, none) == (kinds, set())


@pytest.mark.parametrize("size", [None, (20, 15)])
def test_file_that_ends_early_is_bad_whatever_warning_comes_first(size: tuple[int, int] | None) -> None:
    for name, data in odd.endings(PICTURE):
        with pytest.raises(BadImage, match=r"(?i)premature end|Bogus"):
            pytest.fail(f"{name} was loaded: {loaded(data, size)}")


def test_truncated_file_with_an_oddity_is_kept_like_a_clean_one() -> None:
    whole = encode_image(PICTURE, quality=90)
    cut = len(whole) * 2 // 3
    for data in (odd.zero_se(whole[:cut]), odd.between_segments(whole[:cut])):
        with pytest.raises(BadImage) as caught:
            loaded(data)
        assert caught.value.truncated
        kept, _ = loaded(data, strict=False)
        assert np.array_equal(kept, loaded(whole[:cut], strict=False)[0])
        assert np.array_equal(kept[:8], loaded(whole)[0][:8])


@pytest.mark.parametrize(
    ("name", "data"), [*odd.wrong_restarts(PICTURE)], ids=lambda part: part if isinstance(part, str) else ""
)
def test_wrong_restart_interval_is_damage(name: str, data: bytes) -> None:
    with pytest.raises(BadImage, match="Corrupt JPEG data"):
        loaded(data)


def test_flipped_bits_give_pils_pixels_or_a_bad_image() -> None:
    rng = np.random.default_rng(20260301)
    wholes = [
        encode_image(PICTURE, quality=90),
        encode_image(PICTURE, quality=90, restart_marker_blocks=2),
        encode_image(PICTURE, quality=90, progressive=True),
        encode_image(Image.frombytes("CMYK", (WIDTH, HEIGHT), rng.bytes(WIDTH * HEIGHT * 4))),
    ]
    outcomes: set[str] = set()
    for i in range(1200):
        whole = wholes[i % len(wholes)]
        at = int(rng.integers(3, odd.scan_of(whole) + 14 if i % 3 else len(whole) - 2))
        data = odd.changed(whole, at, whole[at] ^ 1 << int(rng.integers(8)))
        try:
            pixels, kinds = loaded(data)
        except BadImage:
            outcomes.add("bad")
            continue
        outcomes.add("warned" if kinds else "clean")
        expected = by_pil(data)
        assert pixels.shape == expected.shape
        assert np.abs(pixels.astype(int) - expected).max() <= 2, (i, at)
    assert outcomes == {"bad", "warned", "clean"}


@pytest.mark.parametrize(
    ("data", "format"), [(odd.ARITHMETIC, JPEG), (odd.ODD_SAMPLING, OTHER_JPEG)], ids=["arithmetic", "sampling 3x1"]
)
def test_rare_coding_is_decoded_as_by_pil(data: bytes, format: int) -> None:
    assert read_header(data)[:4] == (24, 16, 1, format)
    assert np.abs(loaded(data)[0].astype(int) - by_pil(data)).max() <= 2
    with pytest.raises(BadImage):
        loaded(data[:-2])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_lossless_jpeg_is_decoded_whole_scaled_and_in_every_mode(mode: str) -> None:
    pixels = np.asarray(PICTURE.convert(mode))
    data = odd.lossless(pixels)
    for target in ("L", "RGB", "RGBA"):
        expected = np.asarray(Image.fromarray(pixels).convert(target)).reshape(HEIGHT, WIDTH, -1)
        assert np.array_equal(loaded(data, mode=target)[0], expected)
        assert loaded(data, (20, 15), mode=target)[0].shape == (15, 20, len(target))
    with pytest.raises(BadImage):
        loaded(data[:-40])


@pytest.mark.parametrize(("bits", "lossless"), [(12, False), (12, True), (16, True)])
def test_deep_jpeg_is_refused_with_its_size(bits: int, lossless: bool) -> None:
    pixels = np.asarray(PICTURE).astype(np.uint16) << bits - 8
    data = bytes(imagecodecs.jpeg8_encode(pixels, bitspersample=bits, lossless=lossless))
    with pytest.raises(UnsupportedImage, match=f"{bits} bits per channel.* unless decode= is given") as caught:
        read_header(data)
    assert caught.value.header[:4] == (WIDTH, HEIGHT, 1, OTHER_JPEG)


def test_oddity_of_a_jpeg_that_pil_decodes_changes_nothing(draw_image: Callable[..., Image.Image]) -> None:
    rng = np.random.default_rng(3)
    clean = encode_image(Image.frombytes("CMYK", (WIDTH, HEIGHT), rng.bytes(WIDTH * HEIGHT * 4)))
    for data in (odd.zero_se(clean), odd.between_segments(clean)):
        assert read_header(data) == read_header(clean)
        assert np.array_equal(loaded(data)[0], by_pil(clean))
