"""The user's `decode` function: which images it makes usable, what it must return, and how its errors surface."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from patchnpack.loaders import BadDataError, BadImage, ErrorPolicy, PackedImageLoader, pack_stream, scan
from patchnpack.loaders.imaging.user_decode import Decode
from patchnpack.packer import FitTokens, Packing
from tests.images import draw_image, encode_image, write_tar

PACKING = Packing(seq_len=64, patch_size=8)
GREY = PACKING.replace(image_mode="L")
SIZES = [(20, 13), (9, 30), (16, 16), (31, 8)]


def deep(width: int, height: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, width, height)).integers(0, 1 << 16, (height, width)).astype(np.uint16)


def window(data: bytes) -> np.ndarray:
    """Decode 16 bits per channel to 8, as (height, width, 1)."""
    return (np.asarray(Image.open(io.BytesIO(data))) >> 8).astype(np.uint8)[..., None]


def window_deep(data: bytes) -> np.ndarray | None:
    """`window` for a TIFF, None for anything else."""
    return window(data) if data[:2] == b"II" else None


@pytest.fixture
def scans(tmp_path: Path) -> str:
    """Four 16-bit TIFFs and two ordinary images, one of them JPEG."""
    members = [(f"deep{i}.tif", encode_image(deep(*size), "TIFF")) for i, size in enumerate(SIZES)]
    members += [(f"plain{i}.{kind}", encode_image(draw_image(24, 17), kind.upper())) for i, kind in enumerate(["png"])]
    members += [("plain1.jpeg", encode_image(draw_image(24, 17), "JPEG"))]
    return write_tar(tmp_path / "scans.tar", members)


def loaded(shard: Any, packing: Packing = GREY, decode: Decode | None = window_deep, **options: Any) -> Any:
    return PackedImageLoader(shard, packing, batch_size=1, image="tif;png;jpeg", decode=decode, **options)


def pixels_of(batches: Any) -> dict[str, np.ndarray]:
    return {
        image.key: image.pixels()[: size[1], : size[0]]
        for batch in batches
        for image, size in zip(batch.images(), batch.image_sizes[batch.image_mask].tolist(), strict=True)
    }


def test_16_bit_images_need_a_decode_function(scans: str) -> None:
    without = loaded(scans, decode=None, errors=ErrorPolicy(max_rate=1))
    assert sorted(pixels_of(without)) == ["plain0", "plain1"]
    assert [bad["stage"] for bad in without.stats()["bad"]] == ["header"] * 4
    assert "16 bits per channel; only 8-bit channels are read unless decode= is given" in str(without.stats()["bad"])
    loader = loaded(scans)
    found = pixels_of(loader)
    assert loader.stats()["bad_images"] == 0
    for i, size in enumerate(SIZES):
        assert np.array_equal(found[f"deep{i}"], (deep(*size) >> 8).astype(np.uint8)[..., None]), size


def test_images_for_which_decode_returns_none_are_decoded_by_the_loader(scans: str) -> None:
    without, found = pixels_of(loaded(scans, decode=None)), pixels_of(loaded(scans))
    for key in ("plain0", "plain1"):
        assert np.array_equal(found[key], without[key])


def test_unsupported_image_is_bad_if_decode_returns_none(scans: str) -> None:
    loader = loaded(scans, decode=lambda data: None)
    assert sorted(pixels_of(loader)) == ["plain0", "plain1"]
    assert [bad["stage"] for bad in loader.stats()["bad"]] == ["decode"] * 4
    assert all("unless decode= is given" in bad["reason"] for bad in loader.stats()["bad"])


def test_one_index_serves_with_and_without_decode(scans: str) -> None:
    index = scan(scans, image="tif;png;jpeg")
    assert sorted(index.bad) == [0, 1, 2, 3]
    assert index.bad_rows(decode=True) == {}
    assert list(zip(index.width[:4].tolist(), index.height[:4].tolist(), strict=True)) == SIZES
    assert len(pixels_of(loaded(scans, index=index))) == 6
    assert len(pixels_of(loaded(scans, index=index, decode=None))) == 2


def test_where_applies_to_images_that_decode_reads(scans: str) -> None:
    loader = loaded(scans, where=lambda index: index.width != 16)
    assert sorted(pixels_of(loader)) == ["deep0", "deep1", "deep3", "plain0", "plain1"]
    assert loader.stats()["skipped"]["where"] == 1


def test_decoded_images_are_resized_and_cropped_like_others(scans: str) -> None:
    packing = GREY.replace(resolution=FitTokens(2), interpolation="box")
    whole = (deep(20, 13) >> 8).astype(np.uint8)
    image = next(image for batch in loaded(scans, packing) for image in batch.images() if image.key == "deep0")
    size = (image.grid[0] * 8, image.grid[1] * 8)
    assert np.array_equal(image.pixels()[..., 0], np.asarray(Image.fromarray(whole).resize(size, Image.Resampling.BOX)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_loader_applies_exif_orientation_after_decode(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(deep(20, 13), "PNG", exif=exif)
    shard = write_tar(tmp_path / "turned.tar", [("a.png", data)])
    found = pixels_of(loaded(shard, decode=window))["a"][..., 0]
    stored = Image.fromarray((deep(20, 13) >> 8).astype(np.uint8))
    stored.getexif()[0x0112] = orientation
    assert np.array_equal(found, np.asarray(ImageOps.exif_transpose(stored)))


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_tiff_is_used_as_pil_turns_it(orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(deep(20, 13), "TIFF", exif=exif)
    shard = write_tar(tmp_path / "turned.tar", [("a.tif", data)])
    assert np.array_equal(pixels_of(loaded(shard))["a"], window(data))


def test_multi_page_files_are_read_with_decode(tmp_path: Path) -> None:
    pages = [draw_image(16, 24, seed=i) for i in range(3)]
    data = encode_image(pages[0], "TIFF", save_all=True, append_images=pages[1:])

    def last(data: bytes) -> np.ndarray:
        image = Image.open(io.BytesIO(data))
        image.seek(2)
        return np.asarray(image)

    shard = write_tar(tmp_path / "pages.tar", [("a.tif", data)])
    assert np.array_equal(pixels_of(loaded(shard, PACKING, decode=None))["a"], np.asarray(pages[0]))
    assert np.array_equal(pixels_of(loaded(shard, PACKING, decode=last))["a"], np.asarray(pages[2]))


def test_image_without_a_readable_size_stays_bad_with_decode(tmp_path: Path) -> None:
    shard = write_tar(tmp_path / "s.tar", [("a.tif", b"DICM, say"), ("b.tif", encode_image(deep(8, 8), "TIFF"))])
    loader = loaded(shard)
    assert sorted(pixels_of(loader)) == ["b"]
    formats = "JPEG, PNG, WebP, GIF, BMP, TIFF, AVIF, JPEG XL, JPEG 2000, HEIC, .npy, .npz, DICOM, MP4, WebM and AVI"
    assert f"only {formats} are read" in loader.stats()["bad"][0]["reason"]


def test_limits_apply_to_images_that_decode_reads(scans: str) -> None:
    loader = loaded(scans, errors=ErrorPolicy(max_pixels=260))
    assert sorted(pixels_of(loader)) == ["deep0", "deep2", "deep3"]
    assert {bad["stage"] for bad in loader.stats()["bad"]} == {"limit"}


@pytest.mark.parametrize(
    ("decode", "message"),
    [
        (lambda data: np.zeros((13, 20, 3), np.uint8), r"uint8 \(13, 20, 3\) for image 'deep0'.*uint8 \(13, 20, 1\)"),
        (lambda data: np.zeros((13, 20), np.uint8), r"uint8 \(13, 20\) for"),
        (lambda data: np.zeros((20, 13, 1), np.uint8), r"uint8 \(20, 13, 1\) for"),
        (lambda data: np.zeros((13, 20, 1), np.uint16), r"uint16 \(13, 20, 1\) for"),
        (lambda data: Image.open(io.BytesIO(data)), r"TiffImageFile for image 'deep0'.*or None"),
    ],
)
def test_wrong_shape_or_type_from_decode_is_an_error_with_the_key(decode: Any, message: str, scans: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(loaded(scans, decode=decode, where=lambda index: np.arange(len(index)) == 0))


def test_error_in_decode_propagates_with_the_key_and_the_remedy(scans: str) -> None:
    def broken(data: bytes) -> np.ndarray:
        raise OSError("no codec")

    with pytest.raises(OSError, match="no codec") as caught:
        list(loaded(scans, decode=broken))
    (note,) = caught.value.__notes__
    assert "image with key 'deep0'" in note
    assert "patchnpack.loaders.BadImage(reason)" in note


def test_bad_image_raised_by_decode_is_counted_and_skipped(scans: str) -> None:
    def picky(data: bytes) -> np.ndarray | None:
        if data == encode_image(deep(9, 30), "TIFF"):
            raise BadImage("its window is empty")
        return window_deep(data)

    loader = loaded(scans, decode=picky)
    assert sorted(pixels_of(loader)) == ["deep0", "deep2", "deep3", "plain0", "plain1"]
    (bad,) = loader.stats()["bad"]
    assert (bad["key"], bad["stage"], bad["reason"]) == ("deep1", "decode", "its window is empty")
    with pytest.raises(BadDataError, match="its window is empty"):
        list(loaded(scans, decode=picky, errors=ErrorPolicy(on_error="raise")))


def test_state_saved_with_decode_is_refused_without_it(scans: str) -> None:
    saved = loaded(scans).state_dict()
    loaded(scans).load_state_dict(saved)
    with pytest.raises(ValueError, match="the state was saved with"):
        loaded(scans, decode=None).load_state_dict(saved)


def test_stream_calls_decode_for_encoded_images_only() -> None:
    asked: list[bytes] = []

    def noted(data: bytes) -> np.ndarray:
        asked.append(data)
        return window(data)

    data, array = encode_image(deep(20, 13), "TIFF"), np.asarray(draw_image(8, 8, mode="L"))
    samples = [(data, 1), (draw_image(16, 8, mode="L"), 2), (array, 3)]
    found = pixels_of(pack_stream(samples, GREY, batch_size=1, decode=noted))
    assert np.array_equal(found["0"], window(data))
    assert np.array_equal(found["2"][..., 0], array)
    assert asked == [data]
    stream = pack_stream(samples, GREY, batch_size=1, errors=ErrorPolicy(max_rate=1))
    assert sorted(pixels_of(stream)) == ["1", "2"]
    assert stream.stats()["bad"][0]["stage"] == "header"


def test_decode_that_is_not_callable_is_refused_at_once() -> None:
    text: Any = "tiff"
    for make in (lambda: loaded("none.tar", decode=text), lambda: pack_stream([], batch_size=1, decode=text)):
        with pytest.raises(ValueError, match="decode is 'tiff'; it must be a function from encoded bytes"):
            make()
