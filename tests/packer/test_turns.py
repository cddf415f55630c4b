from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from patchnpack.packer import _turns


@pytest.mark.parametrize("orientation", range(1, 9))
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    mode=st.sampled_from(["L", "RGB", "RGBA"]),
    seed=st.integers(0, 999),
)
@example(size=(7, 1), mode="RGB", seed=0)
@settings(max_examples=15, deadline=None)
def test_orient_turns_an_image_as_pil_does(orientation: int, size: tuple[int, int], mode: str, seed: int) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, len(mode)), np.uint8)
    image = Image.fromarray(pixels[..., 0] if mode == "L" else pixels)
    assert image.mode == mode
    image.getexif()[0x0112] = orientation
    want = np.asarray(ImageOps.exif_transpose(image))
    upright = _turns.orient(pixels, orientation)
    assert upright.flags.c_contiguous
    np.testing.assert_array_equal(upright, want.reshape(*want.shape[:2], -1))


@pytest.mark.parametrize("left_right", [False, True])
@pytest.mark.parametrize("top_bottom", [False, True])
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 13))
@settings(max_examples=30, deadline=None)
def test_mirror_writes_what_numpy_does(left_right: bool, top_bottom: bool, height: int, width: int, C: int) -> None:
    pixels = np.random.default_rng(C).integers(0, 256, (height, width, C), np.uint8)
    out = np.empty_like(pixels)
    _turns.mirror(pixels, left_right, top_bottom, out)
    np.testing.assert_array_equal(out, pixels[:: -1 if top_bottom else 1, :: -1 if left_right else 1])
