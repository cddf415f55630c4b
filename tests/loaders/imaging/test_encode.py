"""Pixels that come decoded are encoded to files that lose nothing of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchnpack import Packing
from patchnpack.loaders.imaging.decode import decode
from patchnpack.loaders.imaging.encode import encode_pixels
from patchnpack.loaders.imaging.formats import find_reader
from patchnpack.loaders.imaging.header import image_header, read_header
from tests.images import draw_image

WAYS: list[dict[str, Any]] = [
    {"size": (41, 30)},
    {"size": (17, 23)},
    {"size": (60, 50), "box": (3, 2, 31, 25)},
    {"size": (31, 25), "box": (3, 2, 31, 25), "interpolation": "bilinear"},
]


def drawn(kind: str) -> Image.Image | np.ndarray:
    """An image of 41 x 30 pixels: a PIL image of this mode, or an array of so many channels."""
    image = draw_image(41, 30)
    image.putalpha(Image.fromarray((np.arange(30 * 41).reshape(30, 41) % 256).astype(np.uint8)))
    if kind.startswith("array"):
        pixels = np.asarray(image)
        return {"2d": pixels[..., 0], "1": pixels[..., :1], "3": pixels[..., :3], "4": pixels}[kind.split()[1]]
    made = image.convert("RGB").convert(kind.removesuffix("+")) if kind not in ("RGBA", "LA") else image.convert(kind)
    if kind.endswith("+"):
        made.info["transparency"] = 3 if made.mode == "P" else made.getpixel((3, 3))
    return made


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
@pytest.mark.parametrize(
    "kind",
    ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "RGB+", "P+", "array 2d", "array 1", "array 3", "array 4"],
)
def test_an_encoded_image_decodes_as_the_image_itself(kind: str, mode: Any) -> None:
    image = drawn(kind)
    data = encode_pixels(image, image_header(image), Packing(image_mode=mode))[0]
    for way in WAYS:
        assert np.array_equal(
            decode(data, read_header(data), mode=mode, **way), decode(image, image_header(image), mode=mode, **way)
        ), way


def test_a_fourth_channel_that_is_not_declared_to_be_alpha_needs_a_tiff() -> None:
    names = []
    for kind in ("RGBA", "array 3", "array 4"):
        image = drawn(kind)
        reader = find_reader(encode_pixels(image, image_header(image), Packing(image_mode="RGBA"))[0])
        assert reader is not None
        names.append(reader.name)
    assert names == ["PNG", "PNG", "TIFF"]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_an_orientation_is_stored_and_not_applied(orientation: int) -> None:
    image = draw_image(41, 30)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.info["exif"] = exif.tobytes()
    header = image_header(image)
    data = encode_pixels(image, header, Packing())[0]
    found = read_header(data)
    assert (found.orientation, found.width, found.height) == (orientation, header.width, header.height)
    size = (header.width, header.height)
    assert np.array_equal(decode(data, found, size), decode(image, header, size))
