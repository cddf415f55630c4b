from __future__ import annotations

import io
import struct
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, features

from patchnpack import FitTokens, Packing, pack_stream
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.header import image_header, read_header
from tests.loaders.imaging.orientations import Entry, tiff_block

WIDTH, HEIGHT, TARGET = 40, 30, (17, 11)


def bands(seed: int = 0) -> np.ndarray:
    """Four bands that have nothing to do with each other, uint8 (HEIGHT, WIDTH, 4)."""
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 4), np.uint8)


def each_by_itself(pixels: np.ndarray) -> np.ndarray:
    resized = [
        Image.fromarray(np.ascontiguousarray(pixels[..., band])).resize(TARGET, Image.Resampling.BICUBIC)
        for band in range(pixels.shape[2])
    ]
    return np.stack([np.asarray(band) for band in resized], axis=-1)


def as_alpha(pixels: np.ndarray) -> np.ndarray:
    return np.asarray(Image.fromarray(pixels, "RGBA").resize(TARGET, Image.Resampling.BICUBIC))


def resized(data: bytes | Image.Image | np.ndarray) -> np.ndarray:
    header = read_header(data) if isinstance(data, bytes) else image_header(data)
    return decode(data, header, TARGET, mode="RGBA")


def tiff(pixels: np.ndarray, extra: int | None) -> bytes:
    """An uncompressed TIFF of four bands, which says of the fourth that it is `extra`."""
    samples = pixels.tobytes()
    entries: list[Entry] = [
        (256, 4, 1, struct.pack("<I", WIDTH)),
        (257, 4, 1, struct.pack("<I", HEIGHT)),
        (258, 3, 4, struct.pack("<4H", 8, 8, 8, 8)),
        (259, 4, 1, struct.pack("<I", 1)),
        (262, 4, 1, struct.pack("<I", 2)),
        (273, 4, 1, struct.pack("<I", 0)),
        (277, 4, 1, struct.pack("<I", 4)),
        (278, 4, 1, struct.pack("<I", HEIGHT)),
        (279, 4, 1, struct.pack("<I", len(samples))),
        *([(338, 3, 1, struct.pack("<H", extra))] if extra is not None else []),
    ]
    return tiff_block(entries, pixels=samples)


def test_bands_of_an_array_are_resized_by_themselves() -> None:
    np.testing.assert_allclose(resized(bands()).astype(int), each_by_itself(bands()), atol=1)


def test_a_fourth_band_that_a_tiff_calls_no_alpha_changes_no_other() -> None:
    np.testing.assert_allclose(resized(tiff(bands(), None)).astype(int), each_by_itself(bands()), atol=1)
    ignored = resized(tiff(bands(), 0))
    np.testing.assert_allclose(ignored[..., :3].astype(int), each_by_itself(bands())[..., :3], atol=1)


def test_a_tiff_held_by_pil_is_resized_like_its_file() -> None:
    for extra in (None, 2):
        data = tiff(bands(), extra)
        np.testing.assert_array_equal(resized(Image.open(io.BytesIO(data))), resized(data))


@pytest.mark.parametrize(
    "encode",
    [
        lambda pixels: Image.fromarray(pixels, "RGBA"),
        lambda pixels: tiff(pixels, 2),
        lambda pixels: _saved(pixels, "PNG"),
        pytest.param(
            lambda pixels: _saved(pixels, "WEBP", lossless=True, exact=True),
            marks=pytest.mark.skipif(not features.check("webp"), reason="this PIL writes no WebP"),
        ),
    ],
    ids=["PIL", "TIFF", "PNG", "WebP"],
)
def test_alpha_by_the_header_weights_colours_as_in_pil(encode: Callable[[np.ndarray], bytes | Image.Image]) -> None:
    np.testing.assert_array_equal(resized(encode(bands())), as_alpha(bands()))
    assert (as_alpha(bands()) != each_by_itself(bands())).any()


def test_a_crop_of_four_bands_is_resized_by_themselves() -> None:
    pixels = bands()
    box = (4, 3, 20, 22)
    found = decode(pixels, image_header(pixels), TARGET, box, mode="RGBA")
    part = np.ascontiguousarray(pixels[3:25, 4:24])
    whole = Image.frombuffer("RGBX", (WIDTH, HEIGHT), pixels.tobytes(), "raw", "RGBX", 0, 1)
    expected = whole.resize(TARGET, Image.Resampling.BICUBIC, (4, 3, 24, 25))
    assert part.shape == (22, 20, 4)
    np.testing.assert_array_equal(found, np.frombuffer(expected.tobytes(), np.uint8).reshape(found.shape))


def test_a_mask_in_the_fourth_band_leaves_the_mean_of_the_others() -> None:
    pixels = np.dstack([np.full((64, 64, 3), 110, np.uint8), np.zeros((64, 64), np.uint8)])
    pixels[:, :32, 3] = 255
    packing = Packing(seq_len=16, patch_size=16, image_mode="RGBA", resolution=FitTokens(4))
    (batch,) = pack_stream([(pixels, 0)], packing, batch_size=1)
    means = next(batch.images()).pixels().mean((0, 1))
    np.testing.assert_allclose(means, [110, 110, 110, 127.5], atol=0.6)


def _saved(pixels: np.ndarray, kind: str, **options: bool) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, kind, **options)
    return file.getvalue()
