from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from patchnpack import Map, Mask
from patchnpack.loaders import BadImage
from patchnpack.loaders.targets.dense import nearest
from patchnpack.loaders.targets.target import Source, renamed, settings_of
from tests.images import encode_image, write_png
from tests.loaders.targets.carried import npy, stored

SOURCE = Source(40, 30)
_MASK: Any = Mask  # for arguments of types that they do not take
_MAP: Any = Map
VALUES = np.random.default_rng(0).integers(0, 4, (30, 40)).astype(np.uint8)


def _palette(values: np.ndarray) -> Image.Image:
    image = Image.fromarray(values, "P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 9, 9, 9])
    return image


def _tiff(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, **options)
    return file.getvalue()


def _few_bits(values: np.ndarray, bits: int) -> bytes:
    """A grey PNG of 1, 2 or 4 bits, whose samples are `values`."""
    rows = b""
    for row in values:
        flat = np.unpackbits(row[:, None], axis=1)[:, -bits:].ravel()
        rows += b"\0" + np.packbits(flat).tobytes()
    return write_png(values.shape[1], values.shape[0], bits=bits, color=0, rows=rows)


FILES: dict[str, Any] = {
    "grey PNG": encode_image(VALUES, "PNG"),
    "PNG of 16 bits": encode_image(VALUES.astype(np.uint16), "PNG"),
    "PNG of 2 bits": _few_bits(VALUES, 2),
    "PNG of 4 bits": _few_bits(VALUES, 4),
    "PNG with a palette": encode_image(_palette(VALUES), "PNG"),
    "PNG with a palette of 2 bits": encode_image(_palette(VALUES), "PNG", bits=2),
    "PNG with a transparent palette": encode_image(_palette(VALUES), "PNG", transparency=0),
    "GIF": encode_image(_palette(VALUES), "GIF"),
    "BMP with a palette": encode_image(_palette(VALUES), "BMP"),
    "TIFF": _tiff(VALUES),
    "TIFF of 32 bits": _tiff(VALUES.astype(np.int32), compression="zlib"),
    "TIFF with a palette": _tiff(VALUES, photometric="palette", colormap=np.zeros((3, 256), np.uint16)),
    "compressed TIFF with a palette": _tiff(
        VALUES, photometric="palette", compression="zlib", colormap=np.zeros((3, 256), np.uint16)
    ),
    "npy": npy(VALUES),
    "npy of 64 bits": npy(VALUES.astype(np.int64)),
    "npy of floats": npy(VALUES.astype(np.float32)),
    "npy with a last axis": npy(VALUES[..., None]),
    "PIL image": Image.fromarray(VALUES),
    "PIL image with a palette": _palette(VALUES),
    "array": VALUES,
    "tensor": torch.from_numpy(VALUES),
    "tensor (1, height, width)": torch.from_numpy(VALUES)[None],
}
BITS: dict[str, Any] = {
    "PNG of 1 bit": encode_image(Image.fromarray(VALUES > 1), "PNG"),
    "BMP of 1 bit": encode_image(Image.fromarray(VALUES > 1), "BMP"),
    "TIFF of 1 bit": _tiff(VALUES > 1),
    "npy of bool": npy(VALUES > 1),
    "PIL image of 1 bit": Image.fromarray(VALUES > 1),
    "array of bool": VALUES > 1,
}


@pytest.mark.parametrize("kind", FILES)
def test_a_mask_holds_the_numbers_of_its_file(kind: str) -> None:
    mask = Mask("seg.png").decoded({"seg.png": FILES[kind]}.get, SOURCE)
    assert mask.array.dtype == np.uint8
    assert np.array_equal(mask.array[..., 0], VALUES)


@pytest.mark.parametrize("kind", BITS)
def test_a_mask_of_one_bit_holds_0_and_1(kind: str) -> None:
    mask = Mask("seg.png").decoded({"seg.png": BITS[kind]}.get, SOURCE)
    assert np.array_equal(mask.array[..., 0], VALUES > 1)


def test_a_mask_holds_instances_beyond_16_bits() -> None:
    values = VALUES.astype(np.int64) * 100_000
    mask = Mask("ids.npy", dtype="int32", fill=-1).decoded({"ids.npy": npy(values)}.get, SOURCE)
    assert np.array_equal(mask.array[..., 0], values)


def test_decode_makes_classes_of_colours() -> None:
    colours = np.stack([VALUES * 10, VALUES * 0, VALUES * 0], axis=-1)
    mask = Mask("seg.png", decode=lambda data: np.asarray(Image.open(io.BytesIO(data)))[..., 0] // 10)
    found = mask.decoded({"seg.png": encode_image(colours, "PNG")}.get, SOURCE)
    assert np.array_equal(found.array[..., 0], VALUES)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_an_orientation_of_its_own_turns_a_mask_rather_than_that_of_its_image(kind: str, orientation: int) -> None:
    source = Source(40, 30, 6)
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode_image(stored(VALUES, orientation), kind, exif=exif.tobytes() if kind == "PNG" else exif)
    if orientation == 1:  # says nothing, so that the image's own holds
        data = encode_image(stored(VALUES, 6), kind)
    mask = Mask("seg.png")
    placed = _whole(mask, mask.decoded({"seg.png": data}.get, source), source)
    assert np.array_equal(placed, VALUES)


def test_an_upright_mask_is_not_turned_with_its_image() -> None:
    source, mask = Source(40, 30, 6), Mask("seg.png", upright=True)
    placed = _whole(mask, mask.decoded({"seg.png": FILES["grey PNG"]}.get, source), source)
    assert np.array_equal(placed, VALUES)


def _whole(mask: Mask, decoded: Any, source: Source) -> np.ndarray:
    from patchnpack.packer.geometry import Geometry

    size = source.width, source.height
    return mask.placed(decoded, source, Geometry(size, (0, 0, *size), size, (False, False), (5, 4), 8), "bicubic")


@given(st.data())
def test_nearest_is_that_of_pil(data: st.DataObject) -> None:
    side = st.integers(1, 50)
    width, height = data.draw(side), data.draw(side)
    left, top = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    across, down = data.draw(st.integers(1, width - left)), data.draw(st.integers(1, height - top))
    size = data.draw(st.tuples(side, side))
    array = np.arange(width * height, dtype=np.int32).reshape(height, width)
    box = left, top, left + across, top + down
    expected = np.asarray(Image.fromarray(array).resize(size, Image.Resampling.NEAREST, box))
    assert np.array_equal(nearest(array[..., None], (left, top, across, down), size)[..., 0], expected)


BAD: dict[str, tuple[Any, Any, str]] = {
    "colours": (Mask("m"), encode_image(np.dstack([VALUES] * 3), "PNG"), "it has 3 channels, and a mask has one value"),
    "missing": (Mask("m"), None, "it has no .m member; add it, or leave the image out"),
    "of no format": (Mask("m"), b"text", "it begins with b'text'; only JPEG, PNG"),
    "damaged": (Mask("m"), FILES["grey PNG"][:60], "its .m member cannot be used: "),
    "of another size": (Mask("m"), encode_image(VALUES[:20], "PNG"), "it has 40x20 pixels, and the image 40x30; make"),
    "an array of another size": (Mask("m"), VALUES[:, :9], "it has 9x30 pixels, and the image 40x30"),
    "a class beyond the head": (
        Mask("m", num_classes=3),
        FILES["grey PNG"],
        r"it holds 3 at \(\d+, 0\).* num_classes 3",
    ),
    "a value beyond its type": (
        Mask("m"),
        npy(VALUES.astype(np.int32) + 254),
        "it holds 25[67] .*dtype uint8 holds; give another",
    ),
    "negative": (Mask("m"), npy(VALUES.astype(np.int16) - 1), "it holds -1"),
    "fractions": (Mask("m"), npy(VALUES + np.float32(0.5)), "its values are fractions or NaN"),
    "text": (
        Mask("m"),
        "masks/a.png",
        "it is text, 'masks/a.png'; it must be an encoded image, a PIL image or an array",
    ),
    "complex": (Mask("m"), VALUES.astype(complex), r"it is complex128 \(30, 40\)"),
    "NaN in a map": (
        Map("m"),
        npy(np.where(VALUES == 3, np.nan, 1.0)),
        r"it holds NaN or infinity, first at \(\d+, 0\)",
    ),
    "channels of a map": (
        Map("m"),
        npy(np.dstack([VALUES] * 2)),
        "it has 2 channels, and Map asks for 1; give channel",
    ),
    "a map beyond its type": (
        Map("m", dtype="uint8"),
        npy(VALUES + 300.0),
        "its values are from 300.0 to 303.0; uint8",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_file_that_is_no_target_says_why(kind: str) -> None:
    target, data, message = BAD[kind]
    with pytest.raises(BadImage, match=message) as caught:
        target.decoded({"m": data}.get, SOURCE)
    assert caught.value.stage == "targets"


def test_a_mask_that_is_upright_already_says_so() -> None:
    with pytest.raises(
        BadImage, match=r"it has 40x30 pixels, and the image 30x40 .before its orientation 6.; it is upri"
    ):
        Mask("m").decoded({"m": VALUES}.get, Source(40, 30, 6))


def test_fill_may_be_any_class_beyond_the_head() -> None:
    values = np.where(VALUES == 3, 255, VALUES).astype(np.uint8)
    assert np.array_equal(Mask("m", num_classes=3).decoded({"m": values}.get, SOURCE).array[..., 0], values)


def test_nearest_keeps_nan_in_a_map() -> None:
    values = np.where(VALUES == 3, np.nan, 1.0)
    found = Map("m", interpolation="nearest").decoded({"m": values}.get, SOURCE)
    assert np.array_equal(found.array[..., 0], values.astype(np.float32), equal_nan=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: _MASK(5), "member is 5; it must name a member of the sample, such as 'seg.png'"),
        (lambda: _MASK("json:mask"), "member is 'json:mask'; a mask or a map is a whole member: give 'json'"),
        (lambda: _MASK("m", fill=-1), "fill is -1, which dtype 'uint8' does not hold; give 0 to 255, or another dtype"),
        (
            lambda: _MASK("m", dtype="float32"),
            "dtype is 'float32'; it must be one of 'uint8', 'int16', 'uint16', 'int32'",
        ),
        (lambda: _MASK("m", num_classes=0), "num_classes is 0; it must be at least 1"),
        (lambda: _MASK("m", per_token="mean"), "per_token is 'mean'; it must be one of 'majority'"),
        (lambda: _MASK("m", upright="yes"), "upright is 'yes'; it must be True or False"),
        (lambda: _MASK("m", decode="m:f"), "decode is 'm:f'; it must be a function"),
        (lambda: _MAP("m", channels=0), "channels is 0; it must be at least 1"),
        (lambda: _MAP("m", fill="0"), "fill is '0'; it must be a number"),
        (
            lambda: _MAP("m", dtype="uint8", fill=0.5),
            "fill is 0.5, which dtype 'uint8' does not hold; give a whole number",
        ),
        (
            lambda: _MAP("m", interpolation="cubic"),
            "interpolation is 'cubic'; it must be one of .* did you mean 'bicubic'",
        ),
        (lambda: _MAP("m", per_token="max"), "per_token is 'max'; it must be one of 'mean'"),
    ],
)
def test_a_mistake_in_a_dense_target_is_refused(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_settings_name_a_function_and_not_its_address() -> None:
    assert "decode=npy" in settings_of(_MASK("m", decode=npy))
    assert renamed(Mask(".M", fill=3), str.lower) == Mask("m", fill=3)
