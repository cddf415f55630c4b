"""Decode buffers: memory is reused, but never while anything refers to it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from patchnpack.loaders.imaging import decode as decode_module
from patchnpack.loaders.imaging import decode_buffers as buffers_module
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.decode_buffers import DecodeBuffers
from patchnpack.loaders.imaging.header import read_header


def address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


def test_memory_is_reused_for_the_next_image() -> None:
    buffers = DecodeBuffers()
    first = buffers.acquire((40, 30, 3))
    place = address(first)
    del first
    assert address(buffers.acquire((30, 40, 3))) == place
    assert address(buffers.acquire((2, 2, 3))) == place
    assert len({address(buffers.acquire((50, 50, 3))) for _ in range(5)}) == 1, (
        "the memory of a larger image is kept, too"
    )


@pytest.mark.parametrize(
    "hold",
    [
        lambda loan: loan,
        lambda loan: loan[3:5, ::2],
        lambda loan: loan.reshape(-1).view(np.uint16),
        lambda loan: torch.from_numpy(loan),
        lambda loan: memoryview(loan),
        lambda loan: Image.frombuffer("RGBX", (30, 30), loan, "raw", "RGBX", 0, 1),
    ],
    ids=["itself", "view", "reshaped", "tensor", "memoryview", "image"],
)
def test_memory_in_use_is_not_reused(hold) -> None:  # type: ignore[no-untyped-def]
    buffers = DecodeBuffers()
    loan = buffers.acquire((40, 30, 3))
    loan[:] = 7
    held, begin, end = hold(loan), address(loan), address(loan) + loan.size
    del loan
    others = [buffers.acquire((40, 30, 3)) for _ in range(3)]
    for i, other in enumerate(others):
        other[:] = i
        assert address(other) >= end or address(other) + other.size <= begin
    assert np.unique(np.asarray(held)).tolist() in ([7], [7 * 257])
    assert [np.unique(other).tolist() for other in others] == [[0], [1], [2]]


def test_kept_images_hold_no_more_memory_than_they_need() -> None:
    buffers = DecodeBuffers()
    kept = [buffers.acquire((100, 100, 3))] + [buffers.acquire((4, 4, 3)) for _ in range(5)]
    held: list[Any] = [loan.base for loan in kept]
    assert all(len(base) <= loan.size + 64 for base, loan in zip(held, kept, strict=True))


def test_threads_do_not_share_memory() -> None:
    buffers = DecodeBuffers()
    buffers.acquire((10, 10, 3))

    def fill(value: int) -> bool:
        alone = True
        for _ in range(200):
            loan = buffers.acquire((64, 64, 3))
            loan[:] = value
            alone &= bool((loan == value).all())
        return alone

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(fill, range(32)))


def test_memory_of_huge_images_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buffers_module, "_KEEP", 1000)
    buffers = DecodeBuffers()
    huge = buffers.acquire((40, 30, 3))
    assert huge.shape == (40, 30, 3)
    assert len(buffers._last[0]) == 0
    small = buffers.acquire((10, 10, 3))
    assert len(buffers._last[0]) == 300 + 64
    huge[:], small[:] = 1, 2
    assert (huge == 1).all()


@pytest.mark.parametrize("width", [32, 400, 533, 640])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_nearly_all_rows_are_misaligned_and_stay_in_the_caches(width: int, channels: int) -> None:
    # libjpeg-turbo bypasses the caches for rows that begin at a multiple of 32 bytes.
    loan = DecodeBuffers().acquire((32, width, channels))
    streamed = sum((address(loan) + y * width * channels) % 32 == 0 for y in range(32))
    assert streamed <= (4 if channels == 4 else 1)


def test_four_byte_pixels_are_word_aligned() -> None:
    assert address(DecodeBuffers().acquire((5, 7, 4))) % 4 == 0


@pytest.mark.parametrize(
    ("size", "box", "scaled"),
    [
        ((90, 60), None, True),  # native size
        ((40, 30), (5, 6, 40, 30), True),  # a crop
        ((20, 15), None, True),  # at a lower scale
        ((20, 15), None, False),
        ((80, 50), None, True),  # too large for a lower scale
        ((120, 90), None, True),  # enlarged
    ],
)
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_kept_images_do_not_change(size, box, scaled, mode) -> None:  # type: ignore[no-untyped-def]
    files = [simplejpeg.encode_jpeg(np.full((60, 90, 3), 50 * i, np.uint8)) for i in range(1, 5)]

    def image(data: bytes) -> np.ndarray:
        return decode(data, read_header(data), size, box, mode=mode, scaled=scaled)

    kept = [image(data) for data in files]
    copies = [image(data).copy() for data in files]
    for one, copy in zip(kept, copies, strict=True):
        assert np.array_equal(one, copy)
    assert not np.array_equal(kept[0], kept[1])


@pytest.mark.parametrize("size", [(90, 60), (40, 30), (80, 50)])
def test_truncated_image_shows_no_pixels_of_the_previous_one(size: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3)).astype(np.uint8)
    data = simplejpeg.encode_jpeg(noise)[:2000]
    found = []
    for before in (0, 255):
        decode_module._buffers.acquire((200, 200, 3))[:] = before
        found.append(decode(data, read_header(data), size, strict=False))
    assert np.array_equal(found[0], found[1])
