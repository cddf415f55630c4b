"""Arrays of NumPy hold the values that NumPy reads from them, and hostile ones are refused by their headers."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import pytest

from patchnpack.loaders.errors import BadImage
from patchnpack.loaders.imaging.decode_pages import Wanted
from patchnpack.loaders.imaging.header import header_or_reason
from patchnpack.loaders.imaging.pages import page_headers
from patchnpack.packer.dtypes import DTYPES
from tests.loaders.imaging import arrays
from tests.loaders.imaging.arrays import paged, whole


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
    file = io.BytesIO()
    header = b"{'descr': '<i2', 'fortran_order': False, 'shape': (30000, 30000, 9), }"
    npy = b"\x93NUMPY\x01\x00" + (118).to_bytes(2, "little") + header.ljust(117) + b"\n"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy + bytes(1000))
    assert data[:2] == file.getvalue()[:2]
    header_found, reason = header_or_reason(file.getvalue())
    assert not header_found.width
    assert "may have" in str(reason)
