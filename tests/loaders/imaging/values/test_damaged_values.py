"""Damaged files of values are bad images: no other error leaves the reader, and no header asks for much memory."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import imagecodecs
import numpy as np
import pytest

from patchnpack.loaders.errors import MAX_BYTES, BadImage
from patchnpack.loaders.imaging.header import header_or_reason
from patchnpack.loaders.imaging.pages import page_headers
from tests.loaders.imaging import arrays


def _files() -> dict[str, Callable[[], bytes]]:
    deep, bands = arrays.values("uint16", 1, 24, 18), arrays.values("float32", 5, 24, 18)
    files: dict[str, Callable[[], bytes]] = {
        "npy": lambda: arrays.npy(bands),
        "npz": lambda: arrays.npz(a=deep, b=bands),
        "png": lambda: arrays.png(deep),
        "jpeg 2000": lambda: arrays.jpeg2000(arrays.values("int16", 5, 24, 18)),
        "jpeg xl": lambda: arrays.jpegxl(deep),
        "avif": lambda: arrays.avif(deep >> 4, bitspersample=12),
    }
    if importlib.util.find_spec("tifffile"):
        files["tiff"] = lambda: arrays.tiff(bands, photometric="minisblack", compression="deflate", tile=(16, 16))
    if importlib.util.find_spec("pydicom"):
        files["dicom"] = lambda: arrays.dicom([deep[..., 0], deep[..., 0]])
        encode = lambda frame: imagecodecs.jpegls_encode(frame)  # noqa: E731
        files["compressed dicom"] = lambda: arrays.dicom([deep[..., 0]], "1.2.840.10008.1.2.4.80", encode)
    return files


FILES = _files()


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("kind", FILES)
def test_changed_and_cut_files_are_read_or_bad(kind: str) -> None:
    good = FILES[kind]()
    assert header_or_reason(good)[0].width == 18
    rng = np.random.default_rng(5)
    bad = 0
    for number in range(120):
        data = bytearray(good)
        if number % 4 == 0:
            del data[int(rng.integers(len(data))) :]
        for at in rng.integers(0, min(len(data), 400 if number % 2 else len(data)) or 1, 1 + number % 5).tolist():
            data[at : at + 1] = rng.bytes(1)
        header, reason = header_or_reason(bytes(data))
        for run in page_headers(bytes(data)):
            assert run.header.width * run.header.height <= MAX_BYTES
        if not header.width or not header.bands:
            assert reason
            bad += 1
            continue
        try:
            found = arrays.whole(bytes(data))
        except BadImage:
            bad += 1
        else:
            assert found.shape[:2] == (header.height, header.width)
    assert bad
