"""DICOM files hold the values that pydicom reads from them, and hostile ones are refused by their headers."""

from __future__ import annotations

import io
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import header_or_reason, read_header
from patchnpack.loaders.imaging.pages import page_headers
from patchnpack.packer.dtypes import DTYPES
from tests.loaders.imaging import arrays
from tests.loaders.imaging.arrays import header_of, paged, whole

pydicom = pytest.importorskip("pydicom")
apply_rescale = pydicom.pixels.apply_rescale

SYNTAX = "1.2.840.10008.1.2."


def reference(data: bytes) -> np.ndarray:
    """The values that pydicom reads: all frames, with the rescale of the modality."""
    dataset = pydicom.dcmread(io.BytesIO(data))
    return np.asarray(apply_rescale(dataset.pixel_array, dataset))


def first_frames(data: bytes, count: int) -> np.ndarray:
    """The values of the first frames, (frames, height, width) or (frames, height, width, 3)."""
    (run,) = page_headers(data)
    assert run.frames == count
    wanted = [Wanted(i, run.header, (run.header.width, run.header.height)) for i in range(count)]
    found = np.stack(paged(data, run.header, wanted))
    return found[..., 0] if found.shape[-1] == 1 else found


RESCALES = [{}, {"RescaleSlope": 2, "RescaleIntercept": -1024}, {"RescaleSlope": -0.25, "RescaleIntercept": 7.5}]


@pytest.mark.filterwarnings("ignore:.*")  # pydicom on values that do not follow the standard
@pytest.mark.parametrize("rescale", RESCALES, ids=str)
@pytest.mark.parametrize("syntax", ["", ".1", ".2", ".5"], ids=["implicit", "explicit", "big endian", "RLE"])
@pytest.mark.parametrize(
    ("dtype", "bits"), [("u1", 8), ("i1", 8), ("u2", 10), ("u2", 16), ("i2", 12), ("i2", 16), ("u4", 20)]
)
def test_values_are_those_of_pydicom(dtype: str, bits: int, syntax: str, rescale: dict[str, Any]) -> None:
    if (dtype, syntax) == ("u4", ".5"):
        pytest.skip("RLE holds samples of 8 and 16 bits")
    rng = np.random.default_rng(bits)
    low, high = (-(1 << bits - 1), 1 << bits - 1) if dtype[0] == "i" else (0, 1 << bits)
    frames = [rng.integers(low, high, (9, 14)).astype(dtype) for _ in range(3)]
    tags = {"BitsStored": bits, "HighBit": bits - 1, **rescale}
    data = arrays.dicom(frames, SYNTAX[:-1] + (syntax if syntax != ".5" else ".1"), **tags)
    if syntax == ".5":
        dataset = pydicom.dcmread(io.BytesIO(data))
        dataset.compress(pydicom.uid.RLELossless)
        file = io.BytesIO()
        dataset.save_as(file)
        data = file.getvalue()
    expected, found = reference(data), first_frames(data, 3)
    kind = np.dtype(DTYPES[header_of(data).dtype])
    assert found.dtype == kind
    assert np.array_equal(found, expected.astype(kind))
    assert kind == "float32" or np.array_equal(found, expected)


def test_words_of_two_samples_of_8_bits_are_swapped_in_big_endian_files() -> None:
    stored = arrays.values("uint8", 1, 9, 14)[..., 0]
    dataset = pydicom.dcmread(io.BytesIO(arrays.dicom([stored], SYNTAX + "2")))
    dataset["PixelData"].VR = "OW"
    file = io.BytesIO()
    dataset.save_as(file)
    expected = pydicom.dcmread(io.BytesIO(file.getvalue())).pixel_array
    assert not np.array_equal(expected, stored)
    assert np.array_equal(whole(file.getvalue())[..., 0], expected)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("photometric", ["RGB", "YBR_FULL"])
def test_colours_are_those_of_pydicom(photometric: str, layout: int) -> None:
    pixels = arrays.values("uint8", 3, 10, 14)
    stored = np.ascontiguousarray(pixels.transpose(2, 0, 1)) if layout else pixels
    tags: dict[str, Any] = {
        "PlanarConfiguration": layout,
        "PhotometricInterpretation": photometric,
        "Rows": 10,
        "Columns": 14,
    }
    data = arrays.dicom([stored], **tags)
    expected = pydicom.dcmread(io.BytesIO(data)).pixel_array  # as RGB
    assert np.array_equal(whole(data), expected)


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("channels", [1, 3])
def test_baseline_jpegs_in_dicom_are_decoded_as_jpegs(channels: int) -> None:
    y, x = np.mgrid[:32, :48]
    pixels = np.stack([5 * y, 4 * x, 3 * (x + y)], 2).astype(np.uint8)[..., :channels]
    jpeg = bytes(imagecodecs.jpeg8_encode(np.ascontiguousarray(arrays.flat(pixels)), level=95))
    tags: dict[str, Any] = {} if channels == 1 else {"PhotometricInterpretation": "YBR_FULL_422"}
    data = arrays.dicom([arrays.flat(pixels)], SYNTAX + "4.50", lambda _: jpeg, **tags)
    expected = np.asarray(Image.open(io.BytesIO(jpeg))).reshape(pixels.shape)
    assert np.abs(whole(data).astype(int) - expected).max() <= 1


@pytest.mark.parametrize(
    ("tags", "dtype", "expected"),
    [
        ({"BitsStored": 12}, "uint16", lambda x: x),
        ({"BitsStored": 12, "RescaleSlope": 1, "RescaleIntercept": -1024}, "int16", lambda x: x.astype(int) - 1024),
        ({"BitsStored": 16, "RescaleSlope": 1, "RescaleIntercept": -1024}, "float32", lambda x: x - 1024.0),
        ({"BitsStored": 12, "RescaleSlope": 0.5, "RescaleIntercept": 3}, "float32", lambda x: x * 0.5 + 3),
        ({"BitsStored": 12, "PhotometricInterpretation": "MONOCHROME1"}, "uint16", lambda x: 4095 - x),
        ({"BitsStored": 12, "PixelRepresentation": 1}, "int16", lambda x: np.where(x > 2047, x.astype(int) - 4096, x)),
    ],
)
def test_dicom_gives_the_values_of_the_modality(tags: dict[str, Any], dtype: str, expected: Any) -> None:
    stored = arrays.values("uint16", 1)[..., 0] >> 4
    data = arrays.dicom([stored], **tags)
    assert DTYPES[header_of(data).dtype] == dtype
    assert np.array_equal(whole(data)[..., 0], expected(stored).astype(dtype))


def test_frames_of_a_dicom_file_are_decoded_each() -> None:
    frames = [arrays.values("int16", 1, seed=i)[..., 0] for i in range(3)]
    data = arrays.dicom(frames)
    (run,) = page_headers(data)
    assert run.frames == 3
    wanted = [Wanted(i, run.header, (41, 33)) for i in (0, 2)]
    found = paged(data, run.header, wanted)
    assert all(np.array_equal(one[..., 0], frames[i]) for one, i in zip(found, (0, 2), strict=True))


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [
        ("4.90", lambda x: imagecodecs.jpeg2k_encode(x, level=0, reversible=True, codecformat="j2k")),
        ("4.80", imagecodecs.jpegls_encode),
        ("4.70", imagecodecs.ljpeg_encode),
    ],
)
def test_compressed_dicom_holds_its_values(syntax: str, encode: Any) -> None:
    stored = arrays.values("uint16", 1)[..., 0] >> 4
    data = arrays.dicom([stored, stored + 1], SYNTAX + syntax, encode, BitsStored=13)
    (run,) = page_headers(data)
    wanted = [Wanted(1, run.header, (41, 33))]
    (found,) = paged(data, run.header, wanted)
    assert np.array_equal(found[..., 0], stored + 1)


def test_dicom_in_colour_of_8_bits_is_read_as_colours() -> None:
    pixels = arrays.values("uint8", 3)
    data = arrays.dicom([pixels])
    assert np.array_equal(decode(data, read_header(data), (41, 33)), pixels)


@pytest.mark.filterwarnings("ignore:Invalid value for VR")  # as it is written
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"Rows": None}, "no Rows"),
        ({"BitsStored": 99}, "99 of 16 bits"),
        ({"Rows": 60000, "Columns": 60000, "NumberOfFrames": 99999}, "99999 frames of"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"RescaleSlope": "nan", "RescaleIntercept": 0}, "slope is nan"),
    ],
)
def test_hostile_dicom_is_bad_by_its_header(changes: dict[str, Any], reason: str) -> None:
    try:
        data = arrays.dicom([arrays.values("uint16", 1)[..., 0]], **changes)
    except ValueError:
        pytest.skip("pydicom refuses to write it")
    header, found = header_or_reason(data)
    assert not header.width
    assert reason in str(found)


def test_dicom_without_pixels_is_a_bad_image() -> None:
    data = arrays.dicom([arrays.values("uint16", 1)[..., 0]])
    cut = data[: data.index(b"\xe0\x7f\x10\x00")]
    with pytest.raises(BadImage, match="no pixels"):
        whole(cut)


def test_a_compressed_file_without_its_frames_or_of_another_size_is_bad() -> None:
    stored = arrays.values("uint16", 1)[..., 0]

    def encode(frame: np.ndarray) -> bytes:
        return bytes(imagecodecs.jpeg2k_encode(frame, level=0, reversible=True, codecformat="j2k"))

    data = arrays.dicom([stored], SYNTAX + "4.90", encode, Rows=40)
    with pytest.raises(BadImage, match=r"its pixels are \(33, 41\), its header said \(40, 41\)"):
        whole(data)
    data = arrays.dicom([stored], SYNTAX + "4.90", lambda frame: encode(frame)[:60])
    with pytest.raises(BadImage):
        whole(data)
    raw = arrays.dicom([stored], NumberOfFrames=5)
    with pytest.raises(BadImage, match="it has 2706 bytes of pixels; its header says 13530"):
        whole(raw)


def test_other_transfer_syntaxes_are_refused_by_name() -> None:
    data = arrays.dicom([arrays.values("uint16", 1)[..., 0]], SYNTAX + "4.100", lambda frame: frame.tobytes()[:100])
    with pytest.raises(BadImage, match=r"its transfer syntax 1\.2\.840\.10008\.1\.2\.4\.100 is not read"):
        whole(data)
