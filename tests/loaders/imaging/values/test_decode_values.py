"""Values of any depth and number of bands reach the loader as the file has them, from every format."""

from __future__ import annotations

import importlib.util
from typing import Any

import imagecodecs
import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, header_or_reason, image_header, read_header
from patchnpack.loaders.imaging.pages import page_headers
from patchnpack.loaders.imaging.readers.depth import turned
from patchnpack.loaders.imaging.values.bands import BandRequest, resize_values
from patchnpack.loaders.imaging.values.decode_values import decode_pages_of_values, decode_values
from patchnpack.packer import _kernels
from patchnpack.packer.config import Interpolation
from patchnpack.packer.dtypes import DTYPES
from tests.loaders.imaging import arrays

needs_tifffile = pytest.mark.skipif(not importlib.util.find_spec("tifffile"), reason="tifffile is not installed")
needs_pydicom = pytest.mark.skipif(not importlib.util.find_spec("pydicom"), reason="pydicom is not installed")

SYNTAX = "1.2.840.10008.1.2."


def header_of(data: bytes) -> Header:
    return header_or_reason(data)[0]


def request_of(header: Header, **changes: Any) -> BandRequest:
    return BandRequest(header.bands, DTYPES[header.dtype], None, False)._replace(**changes)


def paged(data: bytes, header: Header, wanted: list[Wanted]) -> list[np.ndarray]:
    """The values of several pages."""
    found = []
    for values in decode_pages_of_values(data, wanted, request_of(header)):
        assert isinstance(values, np.ndarray), values
        found.append(values)
    return found


def whole(data: bytes, **changes: Any) -> np.ndarray:
    """All values of an encoded image."""
    header = header_of(data)
    return decode_values(data, header, (header.width, header.height), None, request_of(header, **changes))


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 13])
@pytest.mark.parametrize("dtype", arrays.DTYPES)
def test_values_of_npy_reach_the_loader_as_they_are(dtype: str, channels: int) -> None:
    array = arrays.values(dtype, channels)
    found = whole(arrays.npy(array))
    assert found.dtype == array.dtype
    assert np.array_equal(found, array)


@pytest.mark.parametrize("order", ["F", "C"])
@pytest.mark.parametrize("stored", [">u2", ">f4", "<i2", "?", "i1", "f2", "<i4", "u8", "f8"])
def test_npy_of_other_orders_and_types_holds_the_same_values(stored: str, order: Any) -> None:
    array = np.asarray(arrays.values("int16", 3) % 100, stored, order=order)
    found = whole(arrays.npy(array))
    assert np.array_equal(found, array.astype(found.dtype))
    assert found.dtype.name in DTYPES


def test_whole_numbers_that_float32_does_not_hold_are_bad() -> None:
    array = np.full((4, 4), (1 << 24) + 1, np.int32)
    with pytest.raises(BadImage, match="16777217; float32 holds whole numbers"):
        whole(arrays.npy(array))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_pngs_hold_their_values(channels: int) -> None:
    array = arrays.values("uint16", channels)
    assert np.array_equal(whole(arrays.png(array)), array)


@pytest.mark.parametrize("channels", [1, 3, 5, 13])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_jpeg_2000s_hold_their_values(dtype: str, channels: int) -> None:
    array = arrays.values(dtype, channels)
    assert np.array_equal(whole(arrays.jpeg2000(array)), array)


@pytest.mark.parametrize("channels", [1, 2, 3, 4])  # imagecodecs would encode more as frames
@pytest.mark.parametrize("dtype", ["uint16", "float32"])
def test_jpeg_xls_hold_their_values(dtype: str, channels: int) -> None:
    array = arrays.values(dtype, channels)
    assert np.array_equal(whole(arrays.jpegxl(array)), array)


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_avifs_and_jpeg_xls_of_10_and_12_bits_hold_their_values(channels: int, bits: int) -> None:
    array = arrays.values("uint16", channels) >> (16 - bits)
    assert np.array_equal(whole(arrays.avif(array, bitspersample=bits)), array)
    assert np.array_equal(whole(arrays.jpegxl(array, bitspersample=bits)), array)


@needs_tifffile
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "deflate", "predictor": True},
        {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [2, 5, 13])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_tiffs_hold_their_values(dtype: str, channels: int, options: dict[str, Any]) -> None:
    array = arrays.values(dtype, channels)
    assert np.array_equal(whole(arrays.tiff(array, photometric="minisblack", **options)), array)


@needs_tifffile
@pytest.mark.parametrize("dtype", ["int8", "uint32", "int32", "float16", "float64"])
def test_tiffs_of_other_types_hold_the_same_values(dtype: str) -> None:
    array = (arrays.values("int16", 1) // 300 % 100).astype(dtype)
    found = whole(arrays.tiff(array, photometric="minisblack"))
    assert np.array_equal(found, array.astype(found.dtype))


@needs_tifffile
def test_white_is_zero_of_16_bits_is_inverted() -> None:
    array = arrays.values("uint16", 1)
    assert np.array_equal(whole(arrays.tiff(array, photometric="miniswhite")), ~array)


@needs_tifffile
def test_pages_of_a_tiff_of_16_bits_are_decoded_each() -> None:
    pages = [arrays.values("uint16", 1, 20 + i, 30, seed=i) for i in range(3)]
    import io

    import tifffile

    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page[..., 0], photometric="minisblack")
    data = file.getvalue()
    runs = page_headers(data)
    wanted = [Wanted(run.page, run.header, (run.header.width, run.header.height)) for run in runs]
    found = paged(data, runs[0].header, wanted)
    assert all(np.array_equal(one, page) for one, page in zip(found, pages, strict=True))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_values_are_turned_as_8_bit_pixels_are(orientation: int) -> None:
    pixels = arrays.values("uint8", 3)
    assert np.array_equal(turned(pixels, orientation), _kernels.orient(pixels, orientation))


def test_npz_has_a_page_per_array_and_4_axes_are_frames() -> None:
    a, b = arrays.values("int16", 2), arrays.values("float32", 3, 8, 9)
    data = arrays.npz(a=a, b=b)
    runs = page_headers(data)
    assert [(run.header.width, run.header.height, run.header.bands) for run in runs] == [(41, 33, 2), (9, 8, 3)]
    for run, array in zip(runs, (a, b), strict=True):
        wanted = [Wanted(run.page, run.header, (run.header.width, run.header.height))]
        (found,) = paged(data, run.header, wanted)
        assert np.array_equal(found, array)
    frames = np.stack([arrays.values("uint16", 2, seed=i) for i in range(4)])
    (run,) = page_headers(arrays.npy(frames))
    assert run.frames == 4
    wanted = [Wanted(i, run.header, (41, 33)) for i in (3, 1, 3)]
    made = paged(arrays.npy(frames), run.header, wanted)
    assert all(np.array_equal(one, frames[i]) for one, i in zip(made, (3, 1, 3), strict=True))


def _hostile_npys() -> list[tuple[str, bytes]]:
    good = arrays.npy(arrays.values("int16", 3))

    def renamed(old: bytes, new: bytes) -> bytes:
        assert old in good
        return good.replace(old, new.ljust(len(old)), 1)

    return [
        ("objects", renamed(b"'<i2'", b"'|O'")),
        ("complex", renamed(b"'<i2'", b"'<c8'")),
        ("fields", arrays.npy(np.zeros((4, 4), "i2,i2"))),
        ("huge", renamed(b"(33, 41, 3), ", b"(9999999999,2)")[:-1]),
        ("negative", renamed(b"(33, 41, 3)", b"(-3, 41, 3)")),
        ("code", renamed(b"{'descr': '<i2'", b"__import__('x')")),
        ("cut", good[:-10]),
        ("cut in its header", good[:30]),
        ("version", good[:6] + b"\x09\x00" + good[8:]),
        ("five axes", arrays.npy(np.zeros((2, 2, 2, 2, 2), np.int16))),
        ("empty", arrays.npy(np.zeros((0, 4), np.int16))),
        ("one axis", arrays.npy(np.zeros(4, np.int16))),
    ]


@pytest.mark.parametrize(("name", "data"), _hostile_npys(), ids=lambda value: value if isinstance(value, str) else "")
def test_hostile_arrays_are_bad_images(name: str, data: bytes) -> None:
    header, reason = header_or_reason(data)
    if name == "cut":
        with pytest.raises(BadImage, match="its header says"):
            whole(data)
    else:
        assert not header.width, (header, reason)
        assert reason


def test_a_zip_bomb_is_refused_by_the_header_of_its_array() -> None:
    data = arrays.npz(a=np.zeros((1, 1), np.int16))
    import io
    import zipfile

    file = io.BytesIO()
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (30000, 30000, 9), }"
    npy = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy + bytes(1000))
    assert data[:2] == file.getvalue()[:2]
    header_found, reason = header_or_reason(file.getvalue())
    assert not header_found.width
    assert "may have" in str(reason)


@needs_pydicom
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


@needs_pydicom
def test_frames_of_a_dicom_file_are_decoded_each() -> None:
    frames = [arrays.values("int16", 1, seed=i)[..., 0] for i in range(3)]
    data = arrays.dicom(frames)
    (run,) = page_headers(data)
    assert run.frames == 3
    wanted = [Wanted(i, run.header, (41, 33)) for i in (0, 2)]
    found = paged(data, run.header, wanted)
    assert all(np.array_equal(one[..., 0], frames[i]) for one, i in zip(found, (0, 2), strict=True))


@needs_pydicom
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


@needs_pydicom
def test_dicom_in_colour_of_8_bits_is_read_as_colours() -> None:
    pixels = arrays.values("uint8", 3)
    data = arrays.dicom([pixels])
    assert np.array_equal(decode(data, read_header(data), (41, 33)), pixels)


@needs_pydicom
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


@needs_pydicom
def test_dicom_without_pixels_is_a_bad_image() -> None:
    data = arrays.dicom([arrays.values("uint16", 1)[..., 0]])
    cut = data[: data.index(b"\xe0\x7f\x10\x00")]
    with pytest.raises(BadImage, match="no pixels"):
        whole(cut)


@pytest.mark.parametrize("interpolation", ["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"])
@pytest.mark.parametrize("dtype", arrays.DTYPES)
def test_resized_values_equal_pils_floats_rounded_once(dtype: str, interpolation: Interpolation) -> None:
    array = arrays.values(dtype, 3, 70, 90)
    for box, size in (((0, 0, 90, 70), (23, 31)), ((7, 11, 50, 40), (120, 60)), ((3, 5, 61, 33), (20, 33))):
        found = resize_values(array, box, size, interpolation)
        left, top, width, height = box
        corners = (left, top, left + width, top + height)
        for band in range(3):
            image = Image.fromarray(array[..., band].astype(np.float32))
            expected = np.asarray(image.resize(size, Image.Resampling[interpolation.upper()], corners), np.float64)
            if dtype != "float32":
                expected = expected.clip(np.iinfo(dtype).min, np.iinfo(dtype).max)
            tolerance = 0.501 if dtype != "float32" else 1e-3
            assert np.abs(found[..., band] - expected).max() <= tolerance
        assert found.dtype == array.dtype


def test_a_turned_crop_of_values_is_the_crop_of_the_turned_values() -> None:
    array = arrays.values("int16", 2)
    for orientation in range(1, 9):
        upright = turned(array, orientation)
        header = Header(upright.shape[1], upright.shape[0], orientation, 7, 1, 2, 2)
        found = decode_values(array, header, (11, 9), (4, 6, 11, 9), request_of(header))
        assert np.array_equal(found, upright[6:15, 4:15])
        resized = decode_values(array, header, (20, 10), None, request_of(header))
        expected = resize_values(
            np.ascontiguousarray(upright), (0, 0, header.width, header.height), (20, 10), "bicubic"
        )
        assert np.abs(resized.astype(int) - expected).max() <= 1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_make_an_image_bad(value: float) -> None:
    array = arrays.values("float32", 1)
    array[3, 4] = value
    with pytest.raises(BadImage, match="NaN or infinity"):
        whole(arrays.npy(array))


def test_an_image_of_another_kind_is_bad_unless_convert_says_how() -> None:
    array = arrays.values("uint16", 1)
    data = arrays.png(array)
    header = header_of(data)

    def read(convert: Any, channels: int = 1, dtype: Any = "float32") -> np.ndarray:
        request = BandRequest(channels, dtype, convert, False)
        return decode_values(data, header, (header.width, header.height), None, request)

    with pytest.raises(BadImage, match="1 band of uint16, and Packing asks for 1 band of float32"):
        read(None)
    assert np.array_equal(read("exact"), array)
    assert np.allclose(read("scale"), array / 65535)
    assert np.array_equal(read("window:0:257", dtype="uint8"), np.rint(array.astype(float).clip(0, 257) / 257 * 255))
    assert np.array_equal(read("exact", channels=3, dtype="uint16"), array.repeat(3, 2))
    assert np.array_equal(read(lambda x: x.astype(np.float32) - 7), array - 7.0)
    with pytest.raises(BadImage, match="uint8 holds whole numbers from 0 to 255"):
        read("exact", dtype="uint8")
    colors = arrays.png(arrays.values("uint16", 3))
    with pytest.raises(BadImage, match="3 bands and channels is 5"):
        whole(colors, convert="exact", channels=5)
    with pytest.raises(TypeError, match="convert returned uint16"):
        read(lambda x: x)


def test_8_bit_colours_are_refused_values_of_more_bits_as_before() -> None:
    data = arrays.png(arrays.values("uint16", 3))
    with pytest.raises(UnsupportedImage, match=r"16 bits per channel.*Packing\(channels=3, dtype='uint16'\)"):
        read_header(data)


def test_arrays_and_pil_images_have_headers_of_their_values() -> None:
    assert image_header(arrays.values("int16", 5), values=True)[-2:] == (5, 2)
    assert image_header(Image.fromarray(arrays.values("uint16", 1)[..., 0]), values=True)[-2:] == (1, 1)
    assert image_header(Image.fromarray(arrays.values("float32", 1)[..., 0]), values=True)[-2:] == (1, 3)
    with pytest.raises(ValueError, match="must be uint8"):
        image_header(arrays.values("int16", 5))
