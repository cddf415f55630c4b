"""Values of any depth and number of bands reach the loader as the file has them, resized and turned as 8-bit images."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import Header, UnsupportedImage, image_header, read_header
from patchnpack.loaders.imaging.readers.depth import turned
from patchnpack.loaders.imaging.values.bands import BandRequest, resize_values
from patchnpack.loaders.imaging.values.decode_values import decode_values
from patchnpack.packer import _turns
from patchnpack.packer.config import Interpolation
from tests.loaders.imaging import arrays
from tests.loaders.imaging.arrays import header_of, request_of, whole


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_16_bit_pngs_hold_their_values(channels: int) -> None:
    array = arrays.values("uint16", channels)
    assert np.array_equal(whole(arrays.png(array)), array)


@pytest.mark.parametrize("bits", [10, 12, 14])
@pytest.mark.parametrize("channels", [1, 3, 5])
def test_jpeg_2000s_of_fewer_bits_hold_their_values(channels: int, bits: int) -> None:
    array = arrays.values("uint16", channels) >> (16 - bits)
    data = arrays.jpeg2000(array, bitspersample=bits)
    assert np.array_equal(whole(data), array)
    scaled = whole(data, convert="scale", dtype="float32", channels=channels)
    assert np.allclose(scaled, array / ((1 << bits) - 1))


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 13])
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


def test_every_image_of_a_heic_of_10_bits_has_its_values() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pictures = [np.full((48, 64, 3), level, np.uint16) for level in (200, 600, 1000)]
    file, heif = io.BytesIO(), pillow_heif.HeifFile()
    for picture in pictures:
        heif.add_frombytes("RGB;16", (64, 48), (picture << 6).tobytes())
    heif.save(file, quality=95)
    data, header = file.getvalue(), header_of(file.getvalue())
    found = arrays.paged(data, header, [Wanted(page, header, (64, 48)) for page in range(3)])
    assert [values.dtype for values in found] == [np.uint16] * 3
    assert all(np.abs(values.astype(int) - picture).max() < 8 for values, picture in zip(found, pictures, strict=True))
    assert np.array_equal(whole(data), found[0])


def test_a_jpeg_2000_whose_components_differ_in_depth_is_not_read() -> None:
    data = bytearray(arrays.jpeg2000(arrays.values("int16", 3), codecformat="j2k"))
    at = data.index(b"\xff\x51") + 40  # of the depth of the first component; each has three bytes
    assert header_of(bytes(data)).bands == 3
    assert data[at] == data[at + 3] == 0x80 | 15
    data[at] = 0x80  # signed, of one bit
    assert header_of(bytes(data)).bands == 0


@pytest.mark.parametrize("orientation", range(1, 9))
def test_values_are_turned_as_8_bit_pixels_are(orientation: int) -> None:
    pixels = arrays.values("uint8", 3)
    assert np.array_equal(turned(pixels, orientation), _turns.orient(pixels, orientation))


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
