"""TIFFs of any depth, bands and layout hold the values that tifffile reads from them."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import header_or_reason
from patchnpack.loaders.imaging.pages import page_headers
from patchnpack.loaders.imaging.values.bands import BandRequest
from patchnpack.packer.dtypes import DTYPES
from tests.loaders.imaging import arrays
from tests.loaders.imaging.arrays import paged, whole

tifffile = pytest.importorskip("tifffile")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"planarconfig": "separate"},
        {"tile": (16, 16)},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"compression": "deflate", "predictor": True},
        {"compression": "zstd", "rowsperstrip": 7},
        {"compression": "lzma", "byteorder": ">"},
        {"compression": "packbits"},
        {"planarconfig": "separate", "tile": (16, 16), "compression": "lzw"},
        {"bigtiff": True, "byteorder": ">", "tile": (32, 16), "compression": "deflate"},
    ],
    ids=str,
)
@pytest.mark.parametrize("channels", [2, 5, 13])
@pytest.mark.parametrize("dtype", arrays.DTYPES)
def test_tiffs_hold_the_values_that_tifffile_reads(dtype: str, channels: int, options: dict[str, Any]) -> None:
    array = arrays.values(dtype, channels)
    data = arrays.tiff(array, photometric="minisblack", **options)
    reference = tifffile.imread(io.BytesIO(data))
    if options.get("planarconfig") == "separate":
        reference = np.moveaxis(reference, 0, -1)
    found = whole(data)
    assert found.dtype == array.dtype
    assert np.array_equal(found, reference)
    assert np.array_equal(found, array)


@pytest.mark.parametrize("dtype", ["int8", "uint32", "int32", "float16", "float64"])
def test_tiffs_of_other_types_hold_the_same_values(dtype: str) -> None:
    array = (arrays.values("int16", 1) // 300 % 100).astype(dtype)
    found = whole(arrays.tiff(array, photometric="minisblack"))
    assert np.array_equal(found, array.astype(found.dtype))


def test_white_is_zero_of_16_bits_is_inverted() -> None:
    array = arrays.values("uint16", 1)
    assert np.array_equal(whole(arrays.tiff(array, photometric="miniswhite")), ~array)


def test_pages_of_a_tiff_of_16_bits_are_decoded_each() -> None:
    pages = [arrays.values("uint16", 1, 20 + i, 30, seed=i) for i in range(3)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            writer.write(page[..., 0], photometric="minisblack")
    data = file.getvalue()
    runs = page_headers(data)
    wanted = [Wanted(run.page, run.header, (run.header.width, run.header.height)) for run in runs]
    found = paged(data, runs[0].header, wanted)
    assert all(np.array_equal(one, page) for one, page in zip(found, pages, strict=True))


@pytest.mark.parametrize("photometric", ["rgb", "separated"])
def test_colours_of_16_bits_hold_their_values(photometric: str) -> None:
    array = arrays.values("uint16", 3 if photometric == "rgb" else 4)
    assert np.array_equal(whole(arrays.tiff(array, photometric=photometric)), array)


def test_pages_of_other_bands_and_types_have_headers_of_their_own() -> None:
    pages = [arrays.values("uint16", 1, 20, 30), arrays.values("float32", 5, 8, 9), arrays.values("uint8", 3, 12, 7)]
    file = io.BytesIO()
    with tifffile.TiffWriter(file) as writer:
        for page in pages:
            options: dict[str, Any] = {} if page.shape[2] == 1 else {"planarconfig": "contig"}
            writer.write(arrays.flat(page), photometric="rgb" if page.shape[2] == 3 else "minisblack", **options)
    runs = page_headers(file.getvalue())
    assert [(run.header.bands, DTYPES[run.header.dtype]) for run in runs] == [
        (1, "uint16"),
        (5, "float32"),
        (3, "uint8"),
    ]
    for run, page in zip(runs, pages, strict=True):
        wanted = [Wanted(run.page, run.header, (run.header.width, run.header.height))]
        (found,) = paged(file.getvalue(), run.header, wanted)
        assert np.array_equal(found, page)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_packed_bits_hold_their_values(bits: int, channels: int) -> None:
    array = arrays.values("uint16", channels) >> (16 - bits)
    data = arrays.tiff(array, photometric="rgb" if channels == 3 else "minisblack", bitspersample=bits)
    assert np.array_equal(whole(data), array)
    scaled = whole(data, convert="scale", dtype="float32")
    assert np.allclose(scaled, array / ((1 << bits) - 1))


def test_depths_that_differ_between_bands_are_refused_with_the_reason() -> None:
    data = bytearray(arrays.tiff(arrays.values("uint16", 3), photometric="rgb"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags["BitsPerSample"].valueoffset
    data[at : at + 2] = (8).to_bytes(2, "little")
    header, reason = header_or_reason(bytes(data))
    assert not header.bands
    assert "16 bits per channel" in str(reason)
    with pytest.raises(BadImage, match="its values are of a kind that is read as 8-bit colours only, or not at all"):
        BandRequest(3, "uint16", None, False).check(header)


def test_tiles_beyond_the_limit_are_refused() -> None:
    data = bytearray(arrays.tiff(arrays.values("float32", 1), photometric="minisblack", tile=(16, 16)))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags["TileWidth"].valueoffset
        kind = file.pages[0].tags["TileWidth"].dtype
    size = 4 if int(kind) == 4 else 2
    data[at : at + size] = b"\xf0" * size
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        at = file.pages[0].tags["TileLength"].valueoffset
    data[at : at + size] = b"\xf0" * size
    with pytest.raises(BadImage, match=r"its directory says tiles of \d+ bytes; a tile may have at most"):
        whole(bytes(data))
